"""Linear algebra on many small and few large matrices, beside torch.func, code by hand and the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.timing import Row, Run
from vmap_core import vmap

SIZES = ((1024, 4), (4, 192))


def inputs(count: int, n: int) -> dict[str, Tensor]:
    """Return positive definite matrices, also with the batch in the last dim, right-hand sides and factors."""
    torch.manual_seed(0)
    a = torch.randn(count, n, n)
    a = a @ a.mT / n + torch.eye(n)
    (ld, pivots), (qr, tau) = torch.linalg.ldl_factor(a), torch.geqrf(a)
    return {
        "a": a, "b": torch.randn(count, n, 2), "a_last": a.movedim(0, -1).contiguous(), "shared": a[0].clone(),
        "ld": ld, "pivots": pivots, "qr": qr, "tau": tau,
    }  # fmt: skip


# name -> (function of one sample, by hand, names of the inputs, in_dims)
Case = tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...], tuple[int | None, ...]]
L = torch.linalg
CASES: dict[str, Case] = {
    "solve": (L.solve, L.solve, ("a", "b"), (0, 0)),
    "solve, one matrix for all": (L.solve, L.solve, ("shared", "b"), (None, 0)),
    "cholesky": (L.cholesky, L.cholesky, ("a",), (0,)),
    "svd": (L.svd, L.svd, ("a",), (0,)),
    "eigh": (L.eigh, L.eigh, ("a",), (0,)),
    "matrix_exp": (L.matrix_exp, L.matrix_exp, ("a",), (0,)),
    "cholesky, batch last": (L.cholesky, lambda a: L.cholesky(a.movedim(-1, 0)), ("a_last",), (-1,)),
    "inv": (L.inv, L.inv, ("a",), (0,)),
    "det": (L.det, L.det, ("a",), (0,)),
    "lu_factor": (L.lu_factor, L.lu_factor, ("a",), (0,)),
    "qr": (L.qr, L.qr, ("a",), (0,)),
    "lu": (L.lu, L.lu, ("a",), (0,)),
    "ldl_solve": (L.ldl_solve, L.ldl_solve, ("ld", "pivots", "b"), (0, 0, 0)),
    "ormqr": (torch.ormqr, torch.ormqr, ("qr", "tau", "b"), (0, 0, 0)),
}  # fmt: skip


def loop(function: Callable[..., Any], tensors: list[Tensor], dims: tuple[int | None, ...]) -> Any:
    """Return what the plain Python loop over the batch gives, stacked."""
    size = next(t.shape[d] for t, d in zip(tensors, dims, strict=True) if d is not None)
    columns = [[t] * size if d is None else t.unbind(d) for t, d in zip(tensors, dims, strict=True)]
    rows = [function(*row) for row in zip(*columns, strict=True)]
    return torch.stack(rows) if isinstance(rows[0], Tensor) else [torch.stack(c) for c in zip(*rows, strict=True)]


def rows() -> list[Row]:
    """Return every operation on every size."""

    def ways(case: Case, data: dict[str, Tensor]) -> dict[str, Run]:
        sample, by_hand, names, dims = case
        tensors = [data[k] for k in names]
        ours, peer = vmap(sample, in_dims=dims), torch.vmap(sample, in_dims=dims)
        return {
            "loop": lambda: loop(sample, tensors, dims),
            "by hand": lambda: by_hand(*tensors),
            "torch.func": lambda: peer(*tensors),
            "ours": lambda: ours(*tensors),
        }

    made = []
    for count, n in SIZES:
        data = inputs(count, n)
        for name, case in CASES.items():
            rounds = 15 if n < 100 else 41  # one call is a whole burst there
            title = f"{name}, {count} of {n}x{n}"
            made.append(Row(title, lambda case=case, data=data: ways(case, data), rounds=rounds))
    return made
