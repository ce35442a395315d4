"""What all tests share: float32 as it is on a GPU; without one Triton's interpreter, and no test that needs one."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

if torch.cuda.is_available():
    torch.backends.cudnn.allow_tf32 = (
        False  # 10 bits of 23: kernels of a batch and of a sample would differ by more than tests allow
    )
else:  # before anything imports Triton (inductor does, where a test compiles): so here, before the first test module
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU, where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def counted() -> Callable[[Any], contextlib.AbstractContextManager[list[Any]]]:
    """Return a context that notes each call of what a patch of PyTorch puts in place."""

    @contextlib.contextmanager
    def counting(patch: Any) -> Iterator[list[Any]]:
        calls: list[Any] = []
        make = patch.make

        def make_counted(native: Any) -> Any:
            replacement = make(native)

            def run(*args: Any, **kwargs: Any) -> Any:
                calls.append(args)
                return replacement(*args, **kwargs)

            return run

        patch.uninstall()
        patch.make = make_counted
        patch.install()
        try:
            yield calls
        finally:
            patch.uninstall()
            patch.make = make
            patch.install()

    return counting
