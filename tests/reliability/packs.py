"""The packs are loaded by the first vmap of a process, whatever the circumstances."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.reliability.rows import Row, fresh, row


class _Function(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CIRCUMSTANCES: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default dtype float64": lambda: _default_dtype(torch.float64),
    "default device meta": lambda: torch.device("meta"),
    "DisableTorchFunction": torch._C.DisableTorchFunction,
    "a mode of the user's": _Function,
    "a dispatch mode of the user's": _Dispatch,
    "autocast": lambda: torch.autocast("cpu"),
}


def first_use(name: str) -> dict[str, int]:
    """Map a function for the first time in these circumstances, and many afterwards."""
    import vmap_core
    from vmap_core import vmap

    torch.set_num_threads(1)
    x = torch.randn(4, 3, 3)
    with CIRCUMSTANCES[name]():
        vmap(torch.sin)(x)
    faults = {f"packs with an error ({pack.error})": 1 for pack in vmap_core.packs() if pack.error}
    for f in (torch.linalg.inv, lambda a: torch.nn.functional.conv1d(a, torch.ones(2, 3, 2)), lambda a: a.softmax(0)):
        expected = torch.stack([f(one) for one in x])
        if not torch.allclose(vmap(f)(x), expected, atol=1e-4):
            faults["different results"] = faults.get("different results", 0) + 1
    w = torch.ones(3, requires_grad=True)
    vmap(lambda a: (a * w).sum())(x).sum().backward()
    if w.grad is None or not torch.allclose(w.grad, x.sum((0, 1)), atol=1e-4):
        faults["wrong gradients"] = 1
    return faults


def rows(quick: bool) -> Iterator[Row]:
    """Iterate over the rows: one."""
    faults: dict[str, int] = {}
    tried = list(CIRCUMSTANCES)[:: 4 if quick else 1]
    for name in tried:
        faults |= {f"{what} under {name}": n for what, n in fresh(first_use, name).items()}
    yield row(
        "packs loaded by the first vmap of a process under " + ", ".join(tried), len(tried), faults,
        "the same rules and results afterwards",
    )  # fmt: skip
