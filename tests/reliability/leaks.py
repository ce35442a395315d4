"""What 20,000 calls leave behind: live objects, and memory."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.reliability.rows import Row, fresh, row

CALLS = 20_000
OBJECTS = 100
"""Live objects more than before that count as none: caches of Python and PyTorch."""
MEMORY = 4 * 2**20
"""Bytes more than before that count as none: what the allocator keeps."""


class Square(torch.autograd.Function):
    """A Function as users write them."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        """Square."""
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        """Return its derivative."""
        return 2 * g * ctx.saved_tensors[0]


def calls() -> dict[str, Callable[[int], Any]]:
    """Return what is called again and again, given how often it was before."""
    from vmap_autograd import grad, hessian, jacrev
    from vmap_core import custom_vmap, vmap

    x, w = torch.randn(4, 3), torch.randn(3, requires_grad=True)
    mapped = vmap(lambda a: (a * 2).softmax(-1))

    def wrong(i: int) -> None:
        with contextlib.suppress(RuntimeError):
            vmap(lambda a: a if a.sum() > 0 else -a)(x)

    def kept_by_itself(a: Any) -> Any:
        a.itself = a  # a cycle through the tensor
        return a + 1

    def of_its_own(i: int) -> Any:
        f = custom_vmap(lambda a: a + i)
        f.def_vmap(lambda info, in_dims, a: (a + i, in_dims[0]))
        return vmap(f)(x)

    return {
        "one function": lambda i: mapped(x),
        "a new function each time": lambda i: vmap(lambda a: torch.zeros(3).add_(a) @ a)(x),
        "sizes that change": lambda i: mapped(x.expand(i % 50 + 1, 4, 3)[:, 0]),
        "nested": lambda i: vmap(lambda a: vmap(lambda b: a * b)(a))(x),
        "gradients inside": lambda i: vmap(grad(lambda a: a.sin().sum()))(x),
        "gradients outside": lambda i: vmap(lambda a: (a * w).sum())(x).sum().backward(),
        "Jacobians and Hessians": lambda i: (jacrev(torch.sin)(x[0]), hessian(lambda a: a.prod())(x[0])),
        "an autograd.Function": lambda i: vmap(grad(lambda a: Square.apply(a).sum()))(x),
        "an error each time": wrong,
        "a custom_vmap each time": of_its_own,
        "tensors in a cycle": lambda i: vmap(kept_by_itself)(x),
    }


def memory() -> int:
    """Return how much memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def left_by(name: str, times: int) -> dict[str, int]:
    """Call again and again; return how many objects and bytes there are more of, where that is more than nothing."""
    torch.set_num_threads(1)
    call = calls()[name]
    measured = []
    for part in (max(times // 10, 200), times):
        for i in range(part):
            call(i)
        gc.collect()
        measured.append((len(gc.get_objects()), memory()))
    objects, size = (after - before for before, after in zip(*measured, strict=True))
    return {"live objects more": objects * (objects > OBJECTS), "bytes more": size * (size > MEMORY)}


def rows(quick: bool) -> Iterator[Row]:
    """Iterate over the rows, one for each kind of call."""
    times = 500 if quick else CALLS
    for name in calls():
        yield row(f"leaks: {name}", times, fresh(left_by, name, times), "live objects and memory as before")
