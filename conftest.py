"""What all tests share: float32 as it is on a GPU; without one Triton's interpreter, and no test that needs one."""

import os

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
