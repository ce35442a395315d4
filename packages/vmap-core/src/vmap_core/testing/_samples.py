"""Batches made from one sample: rows that differ, and that the operator still accepts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# For each level, outermost first, the batch dim of every tensor, or None.
Levels = list[tuple[int | None, ...]]

STRENGTHS = ("rolled", "scaled", "equal")


def rows(x: Tensor, count: int, strength: str = "rolled") -> list[Tensor]:
    """Return ``count`` tensors with the shape of ``x``, the first of them equal to it.

    Args:
        x: a sample.
        count: how many.
        strength: how much rows differ. ``"rolled"``: all dims roll by the row's number, which keeps indices in range,
            permutations whole, symmetric matrices symmetric and definite ones definite; floating values shrink a
            little, so that scalars differ too. ``"scaled"``: floating values shrink, the others flip, which keeps
            triangles and order. ``"equal"``: rows are copies.

    Returns:
        Tensors that share no memory.
    """
    return [_row(x.detach(), i, strength) for i in range(count)]


def _row(x: Tensor, i: int, strength: str) -> Tensor:
    if strength == "equal" or i == 0 or x.layout != torch.strided:
        return x.clone()
    dims = tuple(range(x.ndim))
    if x.dtype.is_floating_point or x.dtype.is_complex:
        moved = x.roll((i,) * x.ndim, dims) if strength == "rolled" and dims else x
        return (moved * (1 - 0.07 * i)).to(x.dtype)
    if strength == "scaled" and dims:
        return x.flip(dims) if i % 2 else x.clone()
    if x.numel() == 1:
        return x ^ bool(i % 2) if x.dtype == torch.bool else torch.where(x >= i, x - i, x)
    return x.roll((i,) * x.ndim, dims) if dims else x.clone()


def strongest(function: Callable[..., Any], tensors: list[Tensor], count: int = 4) -> str | None:
    """Return the strength of variation under which a function accepts every row; None if it does not take the sample.

    Args:
        function: takes one tensor for each of ``tensors``.
        tensors: a sample.
        count: how many rows to try.
    """
    for strength in STRENGTHS:
        try:
            for row in zip(*(rows(t, count, strength) for t in tensors), strict=True):
                function(*row)
        except Exception:  # whatever the operator raises where it does not take the row
            continue
        return strength
    return None


def batched(tensors: list[Tensor], levels: Levels, sizes: tuple[int, ...], strength: str) -> list[Tensor]:
    """Return physical tensors: a batch dim of rows for each level that maps a tensor.

    Args:
        tensors: a sample.
        levels: batch dims, as `choices` and `nested_choices` give them.
        sizes: the batch size of each level.
        strength: how rows differ (see `rows`).
    """
    return [
        _batched(t, [(d[k], size) for d, size in zip(levels, sizes, strict=True) if d[k] is not None], strength)
        for k, t in enumerate(tensors)
    ]


def _batched(x: Tensor, dims: list[Any], strength: str) -> Tensor:
    if not dims:
        return x.detach().clone()
    (dim, size), *inner = dims
    if size == 0:
        like = _batched(x, inner, strength)
        return like.new_empty((*like.shape[:dim], 0, *like.shape[dim:]))
    return torch.stack([_batched(r, inner, strength) for r in rows(x, size, strength)], dim)


def choices(ranks: list[int]) -> list[tuple[int | None, ...]]:
    """Return the in_dims to try for tensors of these ranks: one entry a tensor.

    All at 0; all last; all in the middle; 0 and last in turn; each alone, at either end; all but one.
    """
    n = len(ranks)
    out: list[tuple[int | None, ...]] = [(0,) * n, tuple(ranks), tuple((r + 1) // 2 for r in ranks)]
    for start in (0, 1):
        out.append(tuple(r if (k + start) % 2 else 0 for k, r in enumerate(ranks)))
    for k in range(n):
        out.append(tuple(0 if j == k else None for j in range(n)))
        out.append(tuple(r if j == k else None for j, r in enumerate(ranks)))
        out.append(tuple(None if j == k else 0 for j in range(n)))
    return list(dict.fromkeys(c for c in out if any(d is not None for d in c)))


def nested_choices(ranks: list[int]) -> Iterator[Levels]:
    """Yield in_dims for two levels: batched at both, and tensors batched at different levels."""
    n = len(ranks)
    yield [(0,) * n, tuple(ranks)]
    yield [tuple(r + 1 for r in ranks), (0,) * n]
    for k in range(n if n > 1 else 0):
        outer, inner = [tuple(None if (j == k) == side else 0 for j in range(n)) for side in (True, False)]
        yield [outer, inner]  # one inside, the others outside
        if n > 2:
            yield [inner, outer]
    if n > 1:
        for k in itertools.islice(range(n), 2):  # one at both levels, the others at one
            yield [(0,) * n, tuple(0 if j == k else None for j in range(n))]
