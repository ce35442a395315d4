"""Gather, scatter, take, put and masked writes."""

from __future__ import annotations

from typing import Any

import torch

from ..levels.read import every_sample
from ..rulekit.dims import align, ensure_bdim, logical_rank, physical_dim, physical_dims, to_front, wrap_dim
from ..rulekit.families import pointwise
from ..rulekit.rule import RuleFunction, RulePack
from ..torch_compat.operators import named_aten as aten
from .cast import as_number
from .reduction import flat
from .view import logical_shape

pack = RulePack("core.scatter")


def _along(op: Any) -> RuleFunction:
    """Make the rule of an operator ``(self, dim, index, ...)`` whose tensors all have the same rank."""

    def along(info: Any, in_dims: Any, x: Any, dim: int, index: Any, *rest: Any, **kwargs: Any) -> Any:
        rank = logical_rank(x, in_dims[0])
        index_rank = logical_rank(index, in_dims[2])
        tensors = [
            ensure_bdim(a, d, info.batch_size) if isinstance(a, torch.Tensor) else a
            for a, d in zip((x, index, *rest), (in_dims[0], *in_dims[2:]), strict=False)
        ]
        lift = rank == 0 or index_rank == 0
        if lift:  # scalars count as vectors of size one
            wrap_dim(dim, rank)
            tensors = [a.unsqueeze(1) if isinstance(a, torch.Tensor) and a.ndim == 1 else a for a in tensors]
        out = op(tensors[0], physical_dim(dim, max(rank, 1)), *tensors[1:], **kwargs)
        result_rank = index_rank if op is aten.gather.default else rank
        return (out.squeeze(1) if lift and result_rank == 0 else out), 0

    return along


pack.family(
    _along,
    aten.gather.default,
    aten.scatter.reduce,
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter.value_reduce,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
)


@pack.rule(aten.take.default)
def take(info, in_dims, x, index):
    """(*), (*i) -> (*i), counted in the flattened sample."""
    x_bdim, i_bdim = in_dims
    if x_bdim is None:
        return torch.take(x, index), i_bdim
    x = flat(x, x_bdim)
    if i_bdim is None:
        shape = index.shape
        index = index.reshape(-1)
        index = torch.where(index < 0, index + x.shape[1], index)
        return x.index_select(1, index).reshape(x.shape[0], *shape), 0
    index = to_front(index, i_bdim)
    rows = index.reshape(index.shape[0], -1) if index.numel() else index.reshape(index.shape[0], 0)
    return x.gather(1, torch.where(rows < 0, rows + x.shape[1], rows)).reshape(index.shape), 0


@pack.rule(aten.put.default)
def put(info, in_dims, x, index, source, accumulate=False):
    """(*), (*i), (*i) -> (*) with the sources put at places of the flattened sample."""
    x = ensure_bdim(x, in_dims[0], info.batch_size)
    rows = x.reshape(x.shape[0], x.shape[1:].numel())
    index, source = (
        ensure_bdim(a, d, info.batch_size).reshape(x.shape[0], logical_numel(a, d))
        for a, d in ((index, in_dims[1]), (source, in_dims[2]))
    )
    samples = torch.arange(x.shape[0], device=x.device)[:, None]
    return aten.index_put.default(rows, [samples, index], source, accumulate).reshape(x.shape), 0


def logical_numel(x: Any, bdim: int | None) -> int:
    """Return the number of elements of one sample's tensor."""
    return torch.Size(logical_shape(x, bdim)).numel()


pack.family(pointwise, aten.masked_fill.Scalar)


@pack.rule(aten.masked_fill.Tensor)
def masked_fill(info, in_dims, x, mask, value):
    """(*), bool (*), () -> (*)."""
    if logical_rank(value, in_dims[2]):
        raise RuntimeError(
            f"masked_fill_ only supports a 0-dimensional value tensor, but got tensor with "
            f"{logical_rank(value, in_dims[2])} dimension(s)."
        )
    if in_dims[2] is None:
        (x, mask), bdim = align((x, mask), in_dims[:2])
        return x.masked_fill(mask, value), bdim
    (x, mask, value), bdim = align((x, mask, value), in_dims)
    return torch.where(mask, as_number(value, x.dtype), x), bdim


@pack.rule(aten.masked_scatter.default)
def masked_scatter(info, in_dims, x, mask, source):
    """(*), bool (*), (*s) -> (*): elements of the source, in order, where the mask is true; contiguous."""
    x_bdim, m_bdim, s_bdim = in_dims
    if x_bdim is None and m_bdim is None:
        x_bdim, x = 0, ensure_bdim(x, None, info.batch_size)
    (x, mask), bdim = align((x, mask), (x_bdim, m_bdim))
    x, mask = torch.broadcast_tensors(x, mask)
    x, mask = ensure_bdim(x, bdim, info.batch_size), ensure_bdim(mask, bdim, info.batch_size)
    source = ensure_bdim(source, s_bdim, info.batch_size)
    source = source.reshape(source.shape[0], source.shape[1:].numel())
    rows = mask.reshape(mask.shape[0], mask.shape[1:].numel())
    order = rows.cumsum(1) - 1
    if bool((every_sample(order) >= source.shape[1]).any()):
        raise RuntimeError("masked_scatter: expected self and source to have same dtypes but the source has fewer "
                           "elements than the mask has true ones")  # fmt: skip
    if not source.shape[1]:
        return x.clone(memory_format=torch.contiguous_format), 0
    values = source.gather(1, order.clamp(min=0)).reshape(x.shape)
    return torch.where(mask, values, x).contiguous(), 0


def _triangle(op: Any) -> RuleFunction:
    def triangle(info: Any, in_dims: Any, x: Any, diagonal: int = 0) -> Any:
        """(*, n, m) -> (*, n, m) with the other triangle zero."""
        bdim = in_dims[0]
        if x.ndim < 3:
            raise RuntimeError(f"{op._schema.name[6:]}: input tensor must have at least 2 dimensions")
        if bdim >= x.ndim - 2:
            x, bdim = to_front(x, bdim), 0
        return op(x, diagonal), bdim

    return triangle


pack.family(_triangle, aten.tril.default, aten.triu.default)


@pack.rule(aten.trace.default)
def trace(info, in_dims, x):
    """(n, m) -> ()."""
    if x.ndim != 3:
        raise RuntimeError("trace: expected a matrix")
    return to_front(x, in_dims[0]).diagonal(0, 1, 2).sum(-1), 0


@pack.rule(aten.diag_embed.default)
def diag_embed(info, in_dims, x, offset=0, dim1=-2, dim2=-1):
    """(*, n) -> (*, n + |offset|, n + |offset|)."""
    x = to_front(x, in_dims[0])
    return torch.diag_embed(x, offset, *physical_dims([dim1, dim2], x.ndim)), 0


@pack.rule(aten.fill.Scalar)
def fill(info, in_dims, x, value):
    """(*), number -> (*)."""
    return aten.fill.Scalar(x, value), in_dims[0]


@pack.rule(aten.fill_.Scalar)
def fill_(info, in_dims, x, value):
    """(*), number -> (*) in place, also where elements share memory."""
    return x.fill_(value), in_dims[0]


@pack.rule(aten.fill.Tensor)
def fill_tensor(info, in_dims, x, value):
    """(*), () -> (*)."""
    if logical_rank(value, in_dims[1]):
        raise RuntimeError(
            f"fill_ only supports 0-dimension value tensor but got tensor with {logical_rank(value, in_dims[1])} "
            f"dimensions."
        )
    x = ensure_bdim(x, in_dims[0], info.batch_size)
    value = value if in_dims[1] is None else value.reshape(-1, *(1,) * (x.ndim - 1))
    return value.to(x.dtype).expand(x.shape).clone(), 0


@pack.rule(aten.fill_diagonal_.default)
def fill_diagonal_(info, in_dims, x, fill_value, wrap=False):
    """(n, *) in place: the main diagonal set to a number."""
    front = to_front(x, in_dims[0])
    rank, shape = front.ndim - 1, front.shape[1:]
    if rank < 2:
        raise RuntimeError("dimensions must larger than 1")
    if rank > 2 and len(set(shape)) != 1:
        raise RuntimeError("all dimensions of input must be of equal length")
    place = torch.arange(min(shape), device=front.device)
    front[(slice(None), *(place,) * rank)] = fill_value
    if wrap and rank == 2 and shape[0] > shape[1] + 1:  # the diagonal goes on after a gap of one row
        rows = torch.arange(shape[1] + 1, shape[0], device=front.device)
        rows = rows[rows % (shape[1] + 1) < shape[1]]
        front[:, rows, rows % (shape[1] + 1)] = fill_value
    return x, in_dims[0]


pack.ask(aten.take.default, aten.put.default, aten.masked_scatter.default, aten.trace.default)
