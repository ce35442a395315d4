"""Advanced indexing: ``aten.index`` and ``aten.index_put``, and the operators that index one dim."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad

from ..errors import DataDependentError, UnsupportedError, user_location
from ..levels.layout import same_storage, samples_first
from ..levels.read import every_sample
from ..rulekit.asking import asker
from ..rulekit.dims import ensure_bdim, logical_rank, physical_dim, to_front, wrap_dim
from ..rulekit.rule import RulePack
from ..rulekit.shared_weight import Product, is_expanded, product
from ..torch_compat.operators import named_aten as aten
from ..torch_compat.tensors import dual_level
from .cast import as_number
from .dynamic import places_of
from .view import logical_shape

pack = RulePack("core.index")


class Region:
    """Where advanced indices point to, in logical dims.

    PyTorch puts the dims of the broadcast index tensors where the first of them stood if they are adjacent, and in
    front of all others if they are not.

    Attributes:
        indices: the index tensors (None where a dim is not indexed), batch dim first and of one rank.
        batched: whether an index has a batch dim.
        rank: logical rank of the broadcast indices.
        first: the first dim that is indexed.
        last: the last one.
        start: the logical dim of the result where the index dims begin.
    """

    def __init__(self, info: Any, indices: Any, dims: Any, x: Any, x_bdim: int | None) -> None:
        self.indices: list[Any] = []
        expanded, expanded_dims = _without_masks(info, indices, dims, x, x_bdim)
        tensors = [(i, d) for i, d in zip(expanded, expanded_dims, strict=True) if i is not None]
        self.batched = any(d is not None for _, d in tensors)
        self.rank = max(logical_rank(i, d) for i, d in tensors)
        for i, d in zip(expanded, expanded_dims, strict=True):
            if d is not None:
                i = samples_first(i, d)  # the kernel lays out results by the strides of indices, too
                i = i.reshape(i.shape[0], *(1,) * (self.rank + 1 - i.ndim), *i.shape[1:])
            self.indices.append(i)
        at = [k for k, i in enumerate(expanded) if i is not None]
        self.first, self.last = at[0], at[-1]
        adjacent = at[-1] - at[0] + 1 == len(at)
        self.start = at[0] if adjacent else 0
        self.adjacent = adjacent

    def place(self, x: Any, bdim: int) -> int:
        """Return where the batch dim of what is indexed has to stand so that the result lies in memory as the loop's.

        The kernel lays out the dims that are not indexed by their strides, and one that is out of order is exchanged with
        others across those that are.
        """
        if not bdim:
            return 0
        step, *strides = (x.stride(d) for d in (bdim, *(d for d in range(x.ndim) if d != bdim)))
        kept = [d for d, s in enumerate(strides) if s > step and (d >= len(self.indices) or self.indices[d] is None)]
        return kept[-1] + 1 if kept else 0

    def with_samples(self, batch_size: int, device: torch.device) -> list[Any]:
        """Return the indices of the tensor with its batch dim in front: sample ``b`` is indexed by row ``b``."""
        samples = torch.arange(batch_size, device=device).reshape(-1, *(1,) * self.rank)
        return [samples, *self.indices]


def _check_mask(mask: Any, bdim: int | None, x: Any, x_bdim: int | None, at: int) -> None:
    """Raise where the shape of a mask is not that of the dims, from one on, that it stands for."""
    shape, indexed = logical_shape(mask, bdim), logical_shape(x, x_bdim)
    if shape != indexed[at : at + len(shape)]:
        raise IndexError(
            f"The shape of the mask {shape} at index {at} does not match the shape of the indexed tensor {indexed} at "
            f"index {at}"
        )


def _without_masks(info: Any, indices: Any, dims: Any, x: Any, x_bdim: int | None) -> tuple[list[Any], list[Any]]:
    out: list[Any] = []
    out_dims: list[Any] = []
    for i, d in zip(indices, dims, strict=True):
        if i is not None and i.dtype in (torch.bool, torch.uint8):
            _check_mask(i, d, x, x_bdim, len(out))
            axes = torch.where(i) if d is None else places_of(info, i, d)
            out.extend(axes)
            out_dims.extend([None if d is None else 0] * len(axes))
        else:
            out.append(i)
            out_dims.append(d)
    return out, out_dims


@pack.rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(info, in_dims, x, indices):
    """(*), index tensors -> (*): NumPy's advanced indexing."""
    x_bdim, dims = in_dims
    region = Region(info, indices, dims, x, x_bdim)
    if x_bdim is None:
        out = aten.index.Tensor(x, region.indices)
        return out, region.start
    if not region.batched:
        at = region.place(x, x_bdim)
        x = x.movedim(x_bdim, at)
        behind = [None] * max(at - len(region.indices), 0)
        out = aten.index.Tensor(x, [*region.indices[:at], *behind, None, *region.indices[at:]])
        before = sum(i is None for i in region.indices[:at]) + len(behind)
        return out, before if region.adjacent and at <= region.first else region.rank + before
    x = to_front(x, x_bdim)
    where = region.with_samples(x.shape[0], x.device)
    if start := region.start:  # the dims before are indexed, too, so that they stay before the indices in memory
        where = [i if i is None or i.ndim <= region.rank else i.unflatten(0, (-1, *(1,) * start)) for i in where]
        for k in range(start):
            where[1 + k] = torch.arange(x.shape[1 + k], device=x.device).reshape(
                -1, *(1,) * (start - 1 - k + region.rank)
            )
    return aten.index.Tensor(x, where), 0  # (B, dims before, *index, other dims)


_ask_put, _ask_embedding = asker(aten.index_put.default), asker(aten.embedding.default)


def _placed(info: Any, x: Any, indices: Any, dims: Any, values: Any, values_bdim: int | None, region: Region) -> Any:
    """Return values for the physical region (B *index, other dims): logically, index dims may stand further in."""
    rank = x.ndim - 1 - sum(i is not None for i in region.indices) + region.rank
    if logical_rank(values, values_bdim) > rank:
        _ask_put(info, (0, dims, values_bdim), (x, indices, values), {})
    if values_bdim is None:
        values = values.reshape((*(1,) * (rank - values.ndim), *values.shape)).unsqueeze(0)
    else:
        values = to_front(values, values_bdim)
        values = values.reshape(values.shape[0], *(1,) * (rank + 1 - values.ndim), *values.shape[1:])
    if region.start:
        moved = range(1, 1 + region.rank)
        values = values.movedim(tuple(d + region.start for d in moved), tuple(moved))
    return values


@pack.rule(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(info, in_dims, x, indices, values, accumulate=False):
    """(*), index tensors, (*) -> (*) with values put where the indices point."""
    x_bdim, dims, v_bdim = in_dims[:3]
    if (
        dims[0] is not None
        and indices[0].dtype == torch.bool
        and all(i is None for i in indices[1:])
        and (logical_rank(values, v_bdim) == 0)
    ):  # one value for each true element: the shape does not depend on how many there are
        rank = logical_rank(x, x_bdim)
        _check_mask(indices[0], dims[0], x, x_bdim, 0)
        mask = to_front(indices[0], dims[0])
        mask = mask.reshape(*mask.shape, *(1,) * (rank + 1 - mask.ndim))
        x = ensure_bdim(x, x_bdim, info.batch_size)
        values = as_number(values, x.dtype)
        values = values if v_bdim is None else values.reshape(-1, *(1,) * rank)
        return torch.where(mask, x + values if accumulate else values, x), 0
    x = ensure_bdim(x, x_bdim, info.batch_size)
    region = Region(info, indices, dims, x, 0)
    where = region.with_samples(x.shape[0], x.device)
    return aten.index_put.default(x, where, _placed(info, x, indices, dims, values, v_bdim, region), accumulate), 0


@pack.rule(aten.index_put_.default, aten._index_put_impl_.default)
def index_put_(info, in_dims, x, indices, values, accumulate=False, unsafe=False):
    """index_put, in place: x has its batch dim by now."""
    x_bdim, dims, v_bdim = in_dims[:3]
    front = to_front(x, x_bdim)
    region = Region(info, indices, dims, front, 0)
    where = region.with_samples(front.shape[0], front.device)
    if same_storage(x, values):  # PyTorch refuses operands that overlap in part, which samples may not
        values = values.clone()
    aten.index_put_.default(front, where, _placed(info, front, indices, dims, values, v_bdim, region), accumulate)
    return x, x_bdim


@pack.rule(aten.index_select.default)
def index_select(info, in_dims, x, dim, index):
    """(*, n, *), (k) -> (*, k, *); a 0-d index counts as one of size one."""
    x_bdim, i_bdim = in_dims[0], in_dims[2]
    rank = logical_rank(x, x_bdim)
    if i_bdim is None and rank:
        return x.index_select(physical_dim(dim, rank, x_bdim), index), x_bdim
    scalar = not rank
    wrap_dim(dim, rank)
    index = ensure_bdim(index, i_bdim, info.batch_size)
    if index.ndim > 2:
        raise IndexError("index_select(): Index is supposed to be a vector")
    index = index.unsqueeze(1) if index.ndim == 1 else index
    if x_bdim is None and rank:
        d = wrap_dim(dim, rank)
        return torch.unflatten(x.index_select(d, index.reshape(-1)), d, index.shape), d
    x = ensure_bdim(x, x_bdim, info.batch_size)
    if scalar:
        return x.unsqueeze(1).gather(1, index).squeeze(1), 0
    d = physical_dim(dim, rank)
    shape = list(x.shape)
    shape[d] = index.shape[1]
    view = [x.shape[0]] + [1] * rank
    view[d] = index.shape[1]
    return x.gather(d, index.reshape(view).expand(shape)), 0


def _rowwise(op: Any) -> Any:
    """Make the rule of an operator that writes slices of ``dim`` at ``index``: one write for all samples.

    With a batched index the samples are laid out one after the other in that dim, each index moved by its sample's.
    """

    def index_write(info: Any, in_dims: Any, x: Any, dim: int, index: Any, *source: Any, **kwargs: Any) -> Any:
        x_bdim, i_bdim = in_dims[0], in_dims[2]
        rank = logical_rank(x, x_bdim)
        x = ensure_bdim(x, x_bdim, info.batch_size)
        rest = list(source)
        sources = [
            (k, s, d) for k, (s, d) in enumerate(zip(source, in_dims[3:], strict=False)) if isinstance(s, torch.Tensor)
        ]
        if not rank:
            wrap_dim(dim, 0)
            x = x.unsqueeze(1)
        d = physical_dim(dim, max(rank, 1))
        for k, s, s_bdim in sources:
            if s_bdim is None and op is aten.index_fill.int_Tensor:
                continue  # a 0-d value for all
            s = ensure_bdim(s, s_bdim, info.batch_size)
            rest[k] = s.reshape(s.shape[0], *(1,) * (x.ndim - s.ndim), *s.shape[1:]) if s.ndim < x.ndim else s
        if i_bdim is None:
            out = op(x, d, index, *rest, **kwargs)
            return (out if rank else out.squeeze(1)), 0
        index = to_front(index, i_bdim)
        index = index.reshape(index.shape[0], index.shape[1:].numel())
        n = x.shape[d]
        offset = torch.arange(x.shape[0], device=index.device)[:, None] * n
        if op in _FILLS:  # the others take no negative ones
            index = torch.where(index < 0, index + n, index)
        # an index out of range must not reach the rows of another sample: send it out of range of them all
        rows = torch.where((index >= 0) & (index < n), index + offset, x.shape[0] * n)
        flat = _flat_rows(x, d)
        rest = [_flat_rows(r, d) if isinstance(r, torch.Tensor) and r.ndim > 1 else r for r in rest]
        out = op(flat, 0, rows.reshape(-1).to(index.dtype), *rest, **kwargs)
        out = out.reshape(x.shape[0], n, *out.shape[1:]).movedim(1, d)
        out = _lying_like(x, out) if op in _FILLS else out.contiguous()  # as what these make does
        return (out if rank else out.squeeze(1)), 0

    return index_write


_FILLS = (aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)


def _lying_like(x: Any, out: Any) -> Any:
    """Return a tensor whose dims have the order in memory that those of another have, as a copy of that one would."""
    strides = x.stride()
    order = [0, *sorted(range(1, x.ndim), key=lambda d: -strides[d])]  # the batch dim is first
    return out.permute(order).contiguous().permute([order.index(d) for d in range(x.ndim)])


def _rows(x: Any) -> Any:
    """(B, *) -> (B, numel)."""
    return x.reshape(x.shape[0], x.shape[1:].numel())


def _flat_rows(x: Any, d: int) -> Any:
    """(B, *, n, *) -> (B * n, *)."""
    return x.movedim(d, 1).flatten(0, 1)


pack.family(
    _rowwise,
    aten.index_add.default,
    aten.index_copy.default,
    aten.index_fill.int_Scalar,
    aten.index_reduce.default,
)


@pack.rule(aten.index_fill.int_Tensor)
def index_fill(info, in_dims, x, dim, index, value):
    """(*, n, *), (k), () -> (*, n, *) with slices set to the value."""
    x_bdim, _, i_bdim, v_bdim = in_dims
    if v_bdim is None:
        return _rowwise(aten.index_fill.int_Tensor)(info, in_dims, x, dim, index, value)
    if logical_rank(value, v_bdim):
        raise RuntimeError(
            f"index_fill_ only supports a 0-dimensional value tensor, but got tensor with "
            f"{logical_rank(value, v_bdim)} dimension(s)."
        )
    shape = logical_shape(x, x_bdim)
    d = wrap_dim(dim, len(shape))
    n = shape[d] if shape else 1
    index = index.reshape(-1) if i_bdim is None else _rows(to_front(index, i_bdim))
    hit = torch.zeros((n,) if i_bdim is None else (info.batch_size, n), dtype=torch.bool, device=x.device)
    hit = hit.scatter(-1, torch.where(index < 0, index + n, index), True)
    x = ensure_bdim(x, x_bdim, info.batch_size)
    view = [1] * len(shape)
    if shape:
        view[d] = n
    hit = hit.reshape(-1, *view)
    return torch.where(hit, as_number(value, x.dtype).reshape(-1, *(1,) * len(shape)), x), 0


@pack.rule(aten.one_hot.default)
def one_hot(info, in_dims, x, num_classes=-1):
    """(*) -> (*, num_classes), contiguous."""
    x = to_front(x, in_dims[0]).contiguous()
    values = every_sample(x)
    if values.numel():
        if int(values.min()) < 0:
            raise RuntimeError("Class values must be non-negative.")
        highest = int(values.max())
        if num_classes == -1:
            lowest = int(every_sample(x.reshape(x.shape[0], x.shape[1:].numel()).amax(1)).min())
            if lowest != highest:
                raise DataDependentError(
                    f"vmap: one_hot without num_classes gives results of different sizes ({lowest + 1} to {highest + 1}) "
                    f"for different samples, at {user_location()}. Instead: pass num_classes."
                )
            num_classes = highest + 1
        elif highest >= num_classes:
            raise RuntimeError("Class values must be smaller than num_classes.")
    elif num_classes <= 0:
        raise RuntimeError("Can not infer total number of classes from empty tensor.")
    return (x.unsqueeze(-1) == torch.arange(num_classes, device=x.device)).long(), 0


@pack.rule(aten.embedding.default)
def embedding(info, in_dims, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """(v, d), (*) -> (*, d)."""
    w_bdim, i_bdim = in_dims[:2]
    if indices.dtype not in (torch.int64, torch.int32):
        _ask_embedding(info, in_dims, (weight, indices, padding_idx), {})
    if w_bdim is None and not scale_grad_by_freq:
        return aten.embedding.default(weight, indices, padding_idx, False, sparse), i_bdim
    if logical_rank(weight, w_bdim) != 2:
        raise RuntimeError("'weight' must be 2-D")
    weight, indices = ensure_bdim(weight, w_bdim, info.batch_size), ensure_bdim(indices, i_bdim, info.batch_size)
    if scale_grad_by_freq:
        raise UnsupportedError(
            f"vmap: embedding with scale_grad_by_freq=True and what is mapped would count indices over the whole batch, "
            f"at {user_location()}. Instead: scale_grad_by_freq=False."
        )
    if is_expanded(weight, 0) and weight.ndim == 3:
        return product(EMBEDDING, indices, weight, None, padding_idx), 0
    return _expanded_embedding(indices, weight, None, padding_idx), 0


def _expanded_embedding(indices: Any, weight: Any, _: None, padding_idx: int) -> Any:
    """(B *), (B v d) -> (B * d)."""
    samples = torch.arange(weight.shape[0], device=weight.device).reshape(-1, *(1,) * (indices.ndim - 1))
    places = torch.where(indices < 0, weight.shape[1], indices)  # unlike an index, a token cannot be negative
    out = aten.index.Tensor(weight, [samples, places])
    if padding_idx >= 0:  # rows at the padding index get no gradient
        out = torch.where((indices == padding_idx).unsqueeze(-1), _without_graph(out), out)
    return out


def _without_graph(x: Any) -> Any:
    """Return a tensor without its graph; a tangent of forward mode stays, as PyTorch's embedding has it."""
    tangent = forward_ad.unpack_dual(x).tangent if dual_level() >= 0 else None
    return x.detach() if tangent is None else forward_ad.make_dual(x.detach(), tangent)


def _embedding(indices: Any, weight: Any, _: None, padding_idx: int) -> Any:
    return aten.embedding.default(weight, indices, padding_idx)


def _embedding_backward(grad: Any, indices: Any, weight: Any, needs: Any, padding_idx: int) -> tuple[Any, Any, Any]:
    """(B * d), (B *) -> (B v d): one table of all samples' rows, one sample's after the other."""
    size, (count, width) = indices.shape[0], weight.shape
    first_rows = torch.arange(0, size * count, count, device=indices.device).reshape(-1, *(1,) * (indices.ndim - 1))
    rows = indices + first_rows
    if padding_idx >= 0:
        rows = torch.where(indices == padding_idx, -1, rows)  # -1: what the kernel takes for padding, below
    table = aten.embedding_dense_backward.default(grad, rows, size * count, -1, False)
    return None, table.reshape(size, count, width), None


EMBEDDING = Product(_embedding, _embedding_backward, _expanded_embedding)


pack.ask(
    aten.index_fill.int_Scalar,
    aten.index_fill.int_Tensor,
    aten.index_add.default,
    aten.index_copy.default,
    aten.index_reduce.default,
    aten.one_hot.default,
)
