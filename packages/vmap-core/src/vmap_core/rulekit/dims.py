"""Moving and counting dims: what batching rules are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..levels.layout import samples_first


def to_front(x: Any, bdim: int | None) -> Any:
    """Return ``x`` with its batch dim first, as a view; an unbatched ``x`` as it is."""
    return x if bdim is None or bdim == 0 else x.movedim(bdim, 0)


def ensure_bdim(x: Any, bdim: int | None, batch_size: int) -> Any:
    """Return ``x`` with a batch dim first: moved there, or expanded (a view, stride 0) if it has none."""
    return x.expand(batch_size, *x.shape) if bdim is None else to_front(x, bdim)


def logical_rank(x: Any, bdim: int | None) -> int:
    """Return the rank without the batch dim."""
    return x.ndim - (bdim is not None)


def wrap_dim(dim: int, rank: int) -> int:
    """Return a logical dim as a non-negative one.

    Raises:
        IndexError: it is out of range, with PyTorch's text. A scalar has dims 0 and -1.
    """
    low = max(rank, 1)
    if not -low <= dim < low:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-low}, {low - 1}], but got {dim})")
    return dim % low


def physical_dim(dim: int, rank: int, bdim: int | None = 0) -> int:
    """Return where logical dim ``dim`` of a tensor of logical rank ``rank`` is in the physical tensor."""
    dim = wrap_dim(dim, rank)
    return dim if bdim is None or dim < bdim else dim + 1


def physical_dims(dims: int | Sequence[int] | None, rank: int, bdim: int | None = 0) -> list[int]:
    """Return the physical dims of several logical ones; of all of them for None.

    Raises:
        RuntimeError: a dim appears twice.
    """
    if dims is None:
        dims = range(rank)
    elif isinstance(dims, int):
        dims = (dims,)
    out = [physical_dim(d, rank, bdim) for d in dims]
    if len(set(out)) != len(out):
        raise RuntimeError(f"dim {out[-1] - (bdim is not None)} appears multiple times in the list of dims")
    return out


def pad_rank(x: Any, bdim: int | None, rank: int) -> Any:
    """Return ``x``, its batch dim (if any) first, with ones in front of its logical dims up to ``rank``."""
    if bdim is None:
        return x
    x = to_front(x, bdim)
    missing = rank - (x.ndim - 1)
    return x if missing <= 0 else x.reshape(x.shape[0], *(1,) * missing, *x.shape[1:])


def below(x: Any, bdim: int, rank: int, to: int) -> Any:
    """Return ``x`` with ones in front of its logical dims up to ``rank``, its batch dim moved to ``to``.

    By views that keep strides, also of dims of size one: what is written to itself is no overlap in part then.
    """
    for _ in range(rank + 1 - x.ndim):
        x, bdim = x.unsqueeze(0), bdim + 1
    return x.movedim(bdim, to)


def align(args: Sequence[Any], in_dims: Sequence[Any]) -> tuple[list[Any], int]:
    """Bring operands that broadcast against each other to one batch dim.

    Where they agree, or one decides how the result lies in memory, nothing is copied. Else samples that do not lie one after
    the other are, so that the result lies as the loop's (see Note [The layout invariant] in `levels.layout`).

    Returns:
        The operands (numbers and None as they are) and the batch dim of the result.
    """
    batched = [(a, d) for a, d in zip(args, in_dims, strict=True) if d is not None]
    first, bdim = batched[0]
    if len(batched) == len([a for a in args if isinstance(a, torch.Tensor)]):
        ndim = first.ndim
        if all(d == bdim and a.ndim == ndim for a, d in batched) and (not bdim or lie_alike([a for a, _ in batched])):
            return list(args), bdim
    rank = max(logical_rank(a, d) for a, d in zip(args, in_dims, strict=True) if isinstance(a, torch.Tensor))
    bdim = _leading(args, in_dims, rank)
    if bdim is None:
        args = [samples_first(a, d) if d else a for a, d in zip(args, in_dims, strict=True)]
        in_dims = [d if d is None else 0 for d in in_dims]
        bdim = 0
    out = []
    for a, d in zip(args, in_dims, strict=True):
        if not isinstance(a, torch.Tensor):
            out.append(a)
        elif d is not None:
            a, d = (pad_rank(a, d, rank), 0) if a.ndim <= rank else (a, d)
            out.append(a if d == bdim else a.movedim(d, bdim))
        elif a.ndim <= rank - bdim:
            out.append(a)  # broadcasts against the dims right of the batch dim
        else:
            out.append(a.unsqueeze(a.ndim - (rank - bdim)))
    return out, bdim


def _leading(args: Sequence[Any], in_dims: Sequence[Any], rank: int) -> int | None:
    """Return the batch dim of the operand that alone decides how the result lies in memory: the first, if none of its dims
    is expanded.
    """
    first, bdim = next((a, d) for a, d in zip(args, in_dims, strict=True) if isinstance(a, torch.Tensor))
    if bdim is None or first.ndim <= rank:
        return None
    sizes = zip(first.shape, first.stride(), strict=True)
    return bdim if all(s and (n > 1 or d == bdim) for d, (n, s) in enumerate(sizes)) else None


def lie_alike(tensors: Sequence[Any]) -> bool:
    """Tell whether tensors have one shape, and the same strides."""
    shape, strides = tensors[0].shape, tensors[0].stride()
    return all(x.shape == shape and x.stride() == strides for x in tensors[1:])


def category(dtype: torch.dtype) -> int:
    """Return the rank of a dtype's kind in type promotion: bool, integer, floating, complex."""
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else 0 if dtype == torch.bool else 1


def promote_like_samples(args: Sequence[Any], in_dims: Sequence[Any]) -> list[Any]:
    """Cast operands so that the physical operation promotes types as the one on samples would.

    Note [Type promotion looks at logical ranks]: a 0-d tensor does not promote one with dims of the same kind
    (``float32[3] * float64[]`` is float32). With a batch dim every sample's scalar is 1-d, and would.
    """
    tensors = [(a, d) for a, d in zip(args, in_dims, strict=True) if isinstance(a, torch.Tensor)]
    dtype = tensors[0][0].dtype
    if all(a.dtype == dtype for a, _ in tensors):
        return list(args)
    ranks = [(a.dtype, logical_rank(a, d)) for a, d in tensors]
    if all(rank for _, rank in ranks):
        return list(args)
    target = promoted(ranks)
    return [
        a.to(target) if isinstance(a, torch.Tensor) and a.dtype != target and not logical_rank(a, d) else a
        for a, d in zip(args, in_dims, strict=True)
    ]


def promoted(operands: Sequence[tuple[torch.dtype, int]]) -> torch.dtype:
    """Return the dtype that operands promote to, given their dtypes and logical ranks."""
    scalars = [dtype for dtype, rank in operands if not rank]
    with_dims = [dtype for dtype, rank in operands if rank]
    if not scalars or not with_dims:
        return _promote_all(scalars or with_dims)
    wide, target = _promote_all(with_dims), _promote_all(scalars)
    return wide if category(wide) >= category(target) else torch.promote_types(wide, target)


def _promote_all(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result
