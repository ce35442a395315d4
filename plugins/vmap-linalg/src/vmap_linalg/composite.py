"""Operators that PyTorch makes of others, where fewer calls do: norms, Kronecker products, chains, pairs of rows."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from vmap_core.extend import (
    RulePack,
    ensure_bdim,
    logical_rank,
    physical_dim,
    promote_like_samples,
    reduction,
    to_front,
)
from vmap_core.extend import named_aten as aten

from .ranks import logical_shape, raise_for_sample
from .special import linalg_check_errors

pack = RulePack("linalg.composite")


def _norm(op: Any) -> Any:
    """Make the rule of a norm over ``dim``; the batch dim stays where it is."""
    reduce, vector = reduction(op), reduction(aten.linalg_vector_norm.default)
    names = [a.name for a in op._schema.arguments]

    def norm(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names[1:], args, strict=False))
        rank = x.ndim - 1
        try:
            if names[2] == "dim" and given.get("dim", kwargs.get("dim")) is None and "matrix" not in op._schema.name:
                if given.get("ord") is None:  # of all elements
                    return vector(info, in_dims, x, 2, None, given.get("keepdim", False), **kwargs)
                if rank not in (1, 2):
                    raise_for_sample(None, op, in_dims, (x, *args), kwargs)
            return reduce(info, in_dims, x, *args, **kwargs)
        except (RuntimeError, IndexError) as error:
            raise_for_sample(error, op, in_dims, (x, *args), kwargs)

    return norm


pack.family(
    _norm,
    aten.linalg_matrix_norm.default,
    aten.linalg_matrix_norm.str_ord,
    aten.linalg_norm.default,
    aten.linalg_norm.ord_str,
)


@pack.rule(aten.kron.default)
def kron(info, in_dims, x, y):
    """(n, m, ...), (k, l, ...) -> (n * k, m * l, ...)."""
    shapes = [logical_shape(v, d) for v, d in zip((x, y), in_dims, strict=True)]
    rank = max(map(len, shapes))
    shapes = [(1,) * (rank - len(s)) + s for s in shapes]
    if not rank:  # else both have dims by the time that they are multiplied, and count alike in type promotion
        x, y = promote_like_samples((x, y), in_dims)
    spread = []
    for v, d, shape, own in zip((x, y), in_dims, shapes, (0, 1), strict=True):
        lead = () if d is None else (info.batch_size,)
        pairs = [p for size in shape for p in ((1, size) if own else (size, 1))]
        spread.append(to_front(v, d).reshape([*lead, *pairs]))
    out = spread[0] * spread[1]
    return out.reshape(info.batch_size, *(a * b for a, b in zip(*shapes, strict=True))), 0


@pack.rule(aten.linalg_tensorinv.default)
def tensorinv(info, in_dims, x, ind=2):
    """(*n, *m) with the first ``ind`` dims as many elements as the rest -> (*m, *n)."""
    shape = torch.Size(logical_shape(x, in_dims[0]))
    first, rest = shape[:ind], shape[ind:]
    if not 0 < ind <= len(shape) or first.numel() != rest.numel():
        raise_for_sample(None, aten.linalg_tensorinv.default, in_dims, (x, ind), {})
    square = to_front(x, in_dims[0]).reshape(info.batch_size, first.numel(), rest.numel())
    out, codes = torch.linalg.inv_ex(square)
    linalg_check_errors(info, (0,), codes, "inv", is_matrix=True)
    return out.reshape(info.batch_size, *rest, *first), 0


@pack.rule(aten.cross.default)
def cross(info, in_dims, x, y, dim=None):
    """(*, 3, *), (*, 3, *) -> (*, 3, *); by default over the first dim of size 3."""
    shape = logical_shape(x, in_dims[0])
    if dim is None:  # deprecated, as PyTorch says once; it also says what is wrong with the shapes
        torch.cross(x.new_zeros(shape), y.new_zeros(logical_shape(y, in_dims[1])))
        dim = shape.index(3)
    if logical_rank(y, in_dims[1]) != len(shape):
        raise_for_sample(None, aten.cross.default, in_dims, (x, y, dim), {})
    x, y = (ensure_bdim(v, d, info.batch_size) for v, d in zip((x, y), in_dims[:2], strict=True))
    try:
        return torch.linalg.cross(x, y, dim=physical_dim(dim, len(shape))), 0
    except RuntimeError as error:
        raise_for_sample(error, aten.cross.default, (0, 0), (x, y, dim), {})


@pack.rule(aten.linalg_vander.default)
def vander(info, in_dims, x, *, N=None):
    """(*, n) -> (*, n, N): the powers of each element; with N given those of a scalar, () -> (1, N)."""
    if N is None and x.ndim == 1:
        raise_for_sample(None, aten.linalg_vander.default, in_dims, (x,), {})
    x = to_front(x, in_dims[0])
    x = x.unsqueeze(-1) if x.ndim == 1 else x
    return torch.linalg.vander(x, N=x.shape[-1] if N is None else N), 0


@pack.rule(aten.pdist.default)
def pdist(info, in_dims, x, p=2.0):
    """(n, d) -> (n * (n - 1) / 2): distances of all pairs of rows, taken from those of all rows to all."""
    x = to_front(x, in_dims[0])
    if x.ndim != 3 or p < 0 or not x.is_floating_point():
        raise_for_sample(None, aten.pdist.default, (0,), (x, p), {})
    n = x.shape[1]
    i, j = torch.triu_indices(n, n, 1, device=x.device)
    distances = torch.cdist(x, x, p, "donot_use_mm_for_euclid_dist")
    return distances.flatten(1).index_select(1, i * n + j), 0


@pack.logical(aten.linalg_multi_dot.default)
def multi_dot(info, tensors):
    """[(n0, n1), (n1, n2), ...], vectors at the ends -> their product, in the order of fewest multiplications."""
    shapes = [tuple(t.shape) for t in tensors]
    ranks = [len(s) for s in shapes]
    alike = len({t.dtype for t in tensors}) == 1
    if len(shapes) < 2 or not set(ranks) <= {1, 2} or 1 in ranks[1:-1] or not alike or not _fit(shapes):
        torch.linalg.multi_dot([torch.zeros(t.shape, dtype=t.dtype) for t in tensors])  # says what is wrong
    return _chain(info, tensors, shapes)


@pack.logical(aten.chain_matmul.default)
def chain_matmul(info, matrices):
    """[(n0, n1), (n1, n2), ...] -> their product; one matrix is its own."""
    shapes = [tuple(m.shape) for m in matrices]
    if any(len(s) != 2 for s in shapes) or not _fit(shapes):
        torch.chain_matmul(*(torch.zeros(s) for s in shapes))
    if len(matrices) == 1:
        with info.pushed():
            return matrices[0].clone()
    return _chain(info, matrices, shapes)


def _fit(shapes: list[tuple[int, ...]]) -> bool:
    return all(a[-1] == b[0] for a, b in itertools.pairwise(shapes))


def _chain(info: Any, tensors: Any, shapes: list[tuple[int, ...]]) -> Any:
    count, first, last = len(shapes), shapes[0], shapes[-1]
    sizes = [first[0] if len(first) == 2 else 1, *(s[0] for s in shapes[1:]), last[1] if len(last) == 2 else 1]
    best: dict[tuple[int, int], tuple[int, int]] = {(i, i): (0, i) for i in range(count)}
    for i, j in ((i, i + length) for length in range(1, count) for i in range(count - length)):
        best[i, j] = min(
            (best[i, k][0] + best[k + 1, j][0] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j)
        )

    def product(i: int, j: int) -> Any:
        k = best[i, j][1]
        return tensors[i] if i == j else product(i, k) @ product(k + 1, j)

    with info.pushed():
        return product(0, count - 1)


@pack.composite(aten.linalg_diagonal.default)
def diagonal(x, *, offset=0, dim1=-2, dim2=-1):
    """(*, n, m) -> (*, min(n, m)), a view."""
    return x.diagonal(offset, dim1, dim2)
