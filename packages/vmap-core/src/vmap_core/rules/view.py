"""Views: the dims of a sample are translated around the batch dim, and the result stays a view."""

from __future__ import annotations

from typing import Any

import torch

from ..dispatch.gathered import gathered
from ..levels.recording import current
from ..rulekit.by_shape import by_shape
from ..rulekit.dims import physical_dim, physical_dims, to_front, wrap_dim
from ..rulekit.rule import Rule, RuleFunction, RulePack, may_return_self
from ..torch_compat.bindings import emitter
from ..torch_compat.operators import named_aten as aten

pack = RulePack("core.view")


def logical_shape(x: Any, bdim: int | None) -> list[int]:
    """Return the shape of one sample's tensor."""
    shape = list(x.shape)
    if bdim is not None:
        del shape[bdim]
    return shape


@pack.rule(aten.expand.default)
@by_shape
def expand(info, in_dims, x, size, *, implicit=False):
    """(*) -> (*size), broadcast. A view; the batch dim stays."""
    bdim = in_dims[0]
    rank = x.ndim - 1
    added = len(size) - rank
    if added < 0:
        raise RuntimeError(
            f"expand: the number of sizes provided ({len(size)}) must be greater or equal to the number of "
            f"dimensions in the tensor ({rank})"
        )
    if -1 in size[:added]:
        raise RuntimeError("The expanded size of the tensor (-1) isn't allowed in a leading, non-existing dimension 0")
    if not added:
        return x.expand(*size[:bdim], x.shape[bdim], *size[bdim:]), bdim
    x = to_front(x, bdim)
    x = x.reshape(x.shape[0], *(1,) * added, *x.shape[1:])
    return x.expand(x.shape[0], *size), 0


@pack.logical(aten.expand_as.default)
def expand_as(info, x, other):
    """(*), (*size) -> (*size). A view of x alone: of one that all samples share, too."""
    with info.pushed():
        return x.expand(other.shape)


@pack.rule(aten.permute.default)
@by_shape
def permute(info, in_dims, x, dims):
    """(*) -> (*), dims in a new order. The batch dim goes first, a view all the same."""
    bdim = in_dims[0]
    return x.permute(bdim, *physical_dims(dims, x.ndim - 1, bdim)), 0


@pack.rule(aten.transpose.int)
@by_shape
def transpose(info, in_dims, x, dim0, dim1):
    """(*) -> (*), two dims swapped."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        wrap_dim(dim0, 0), wrap_dim(dim1, 0)
        return aten.alias.default(x), bdim
    return x.transpose(physical_dim(dim0, rank, bdim), physical_dim(dim1, rank, bdim)), bdim


@pack.rule(aten.t.default)
@by_shape
def t(info, in_dims, x):
    """(n, m) -> (m, n); a vector or scalar as it is."""
    rank = x.ndim - 1
    if rank > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {rank}D")
    return transpose(info, in_dims, x, 0, 1) if rank == 2 else (aten.alias.default(x), in_dims[0])


@pack.rule(aten.numpy_T.default)
@by_shape
def numpy_T(info, in_dims, x):
    """(*) -> (*), all dims reversed."""
    return permute(info, in_dims, x, range(x.ndim - 2, -1, -1))


@pack.rule(aten.unsqueeze.default)
@by_shape
def unsqueeze(info, in_dims, x, dim):
    """(*) -> (*, 1, *). The dim counts on the result, which has one more."""
    bdim, rank = in_dims[0], x.ndim
    dim = dim % rank if -rank <= dim < rank else wrap_dim(dim, rank)
    return (x.unsqueeze(dim), bdim + 1) if dim <= bdim and bdim else (x.unsqueeze(dim + 1), bdim)


@pack.rule(aten.squeeze.default)
@by_shape
def squeeze(info, in_dims, x):
    """(*) -> (*) without its dims of size one."""
    return squeeze_dims(info, in_dims, x, range(x.ndim - 1))


@pack.rule(aten.squeeze.dim)
@by_shape
def squeeze_dim(info, in_dims, x, dim):
    """(*) -> (*) without ``dim``, if its size is one."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank or not -rank <= dim < rank:
        return squeeze_dims(info, in_dims, x, [dim])
    d = dim % rank
    d += d >= bdim
    return x.squeeze(d), bdim - (d < bdim and x.shape[d] == 1)


@pack.rule(aten.squeeze.dims)
@by_shape
def squeeze_dims(info, in_dims, x, dims):
    """(*) -> (*) without those of ``dims`` whose size is one."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        for d in dims:
            wrap_dim(d, 0)
        return x.view_as(x), bdim
    gone = [d for d in physical_dims(list(dims), rank, bdim) if x.shape[d] == 1]
    return x.squeeze(tuple(gone)) if gone else x.view_as(x), bdim - sum(d < bdim for d in gone)


@pack.rule(aten.select.int)
@by_shape
def select(info, in_dims, x, dim, index):
    """(*, n, *) -> (*, *)."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        raise IndexError("select() cannot be applied to a 0-dim tensor.")
    d = physical_dim(dim, rank, bdim)
    return x.select(d, index), bdim - (d < bdim)


def _by_tensor(args: Any, kwargs: Any) -> bool:
    return any(isinstance(a, torch.Tensor) for a in (*args[1:], *kwargs.values()))


@pack.logical(torch.select, torch.Tensor.select, when=_by_tensor)
def select_tensor(info, x, dim, index):
    """(*, n, *), () -> (*, *), at a place that may differ from sample to sample."""
    with info.pushed():
        return gathered(x, [None] * wrap_dim(dim, x.ndim) + [index])


@pack.rule(aten.slice.Tensor)
@by_shape
def slice_(info, in_dims, x, dim=0, start=None, end=None, step=1):
    """(*, n, *) -> (*, m, *)."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        raise RuntimeError("slice() cannot be applied to a 0-dim tensor.")
    return aten.slice.Tensor(x, physical_dim(dim, rank, bdim), start, end, step), bdim


@pack.rule(aten.narrow.default)
@by_shape
def narrow(info, in_dims, x, dim, start, length):
    """(*, n, *) -> (*, length, *)."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        raise RuntimeError("narrow() cannot be applied to a 0-dim tensor.")
    return x.narrow(physical_dim(dim, rank, bdim), start, length), bdim


@pack.logical(aten.narrow.Tensor)
def narrow_tensor(info, x, dim, start, length):
    """(*, n, *), () -> (*, length, *), from a place that may differ from sample to sample."""
    with info.pushed():
        n = x.shape[dim]
        start = torch.where(start < 0, start + n, start)
        places = start.reshape(1) + torch.arange(length, device=x.device)
        return gathered(x, [None] * wrap_dim(dim, x.ndim) + [places])


@pack.rule(aten.unbind.int)
def unbind(info, in_dims, x, dim=0):
    """(*, n, *) -> n times (*, *)."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        raise IndexError("Dimension specified as 0 but tensor has no dimensions")
    d = physical_dim(dim, rank, bdim)
    return x.unbind(d), bdim - (d < bdim)


def _splitter(op: Any) -> RuleFunction:
    """Make the rule of an operator that cuts ``dim``, its third argument, into a list of views."""
    emit = emitter(op)

    def split(info: Any, in_dims: Any, x: Any, sizes: Any, dim: int = 0) -> Any:
        bdim, rank = in_dims[0], x.ndim - 1
        if not rank:
            raise RuntimeError("split expects at least a 1-dimensional tensor")
        return tuple(emit(x, sizes, physical_dim(dim, rank, bdim))), bdim  # an overload gives a list

    return split


pack.family(
    _splitter,
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
    aten.unsafe_chunk.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
)


@pack.rule(aten.diagonal.default)
@by_shape
def diagonal(info, in_dims, x, offset=0, dim1=0, dim2=1):
    """(*, n, *, m, *) -> (*, *, *, k)."""
    bdim, rank = in_dims[0], x.ndim - 1
    a, b = physical_dim(dim1, rank, bdim), physical_dim(dim2, rank, bdim)
    return aten.diagonal.default(x, offset, a, b), bdim - (a < bdim) - (b < bdim)


@pack.rule(aten.unfold.default)
@by_shape
def unfold(info, in_dims, x, dimension, size, step):
    """(*, n, *) -> (*, windows, *, size)."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        wrap_dim(dimension, 0)
        if size > 1:
            raise RuntimeError("maximum size for tensor at dimension 0 is 1 but size is " + str(size))
        return x.unsqueeze(-1).narrow(-1, 0, size), bdim
    return x.unfold(physical_dim(dimension, rank, bdim), size, step), bdim


@pack.rule(aten.movedim.intlist, aten.moveaxis.intlist)
def movedim(info, in_dims, x, source, destination):
    """(*) -> (*), some dims moved."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        for d in (*source, *destination):
            wrap_dim(d, 0)
        return aten.alias.default(x), bdim
    x = to_front(x, bdim)
    return x.movedim(physical_dims(source, rank), physical_dims(destination, rank)), 0


@pack.rule(aten.movedim.int, aten.moveaxis.int)
@by_shape
def movedim_int(info, in_dims, x, source, destination):
    """(*) -> (*), one dim moved."""
    return movedim(info, in_dims, x, [source], [destination])


@pack.logical(aten.tensor_split.tensor_indices_or_sections)
def tensor_split(info, x, indices_or_sections, dim=0):
    """(*, n, *) -> several (*, n_i, *), at places or in parts read from a tensor."""
    with info.pushed():
        return aten.tensor_split(x, indices_or_sections.tolist(), dim)


def _same_dims(op: Any) -> Rule:
    """Make the rule of a view of the elements: every dim stays."""

    emit = emitter(op)

    def element_view(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return emit(x, *args, **kwargs), in_dims[0]

    return by_shape(element_view)


pack.family(
    _same_dims,
    aten.alias.default,
    aten.detach.default,
    aten._conj.default,
    aten._neg_view.default,
    aten.imag.default,
    aten.lift_fresh.default,
    aten.lift.default,
)
pack.family(
    lambda op: may_return_self(_same_dims(op).function),  # ``x.conj() is x`` where x is real
    aten.conj.default,
    aten.conj_physical.default,
    aten.positive.default,
    aten.real.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
)


@pack.rule(aten.view_as_real.default)
def view_as_real(info, in_dims, x):
    """Complex (*) -> (*, 2)."""
    # The dispatcher's door does not see that a conjugate is lazy, so PyTorch has not resolved it.
    return torch.view_as_real(x.resolve_conj()), in_dims[0]


@pack.rule(aten.view_as_complex.default)
def view_as_complex(info, in_dims, x):
    """(*, 2) -> complex (*)."""
    bdim = in_dims[0]
    if x.ndim == 1:
        raise RuntimeError("Input tensor must have one or more dimensions")
    if bdim == x.ndim - 1:
        x, bdim = to_front(x, bdim), 0
    return torch.view_as_complex(x), bdim


@pack.rule(aten.view.dtype)
def view_dtype(info, in_dims, x, dtype):
    """(*, n) -> (*, n * old size / new size), the bytes read anew."""
    bdim = in_dims[0]
    if x.ndim == 1 and x.element_size() != torch.empty((), dtype=dtype).element_size():
        raise RuntimeError(f"self.dim() cannot be 0 to view {x.dtype} as {dtype} (different element sizes)")
    if bdim == x.ndim - 1:
        x, bdim = to_front(x, bdim), 0
    return x.view(dtype), bdim


@pack.rule(aten.as_strided.default)
def as_strided(info, in_dims, x, size, stride, storage_offset=None):
    """(*) -> (*size) over the sample's memory, which lies ``x.stride(bdim)`` elements after the one before.

    An offset counts from the start of the storage, as it does for the tensor itself: it is only meaningful for the
    first sample, so it must be the tensor's own.
    """
    bdim = in_dims[0]
    batch_stride, n = x.stride(bdim), x.shape[bdim]
    if storage_offset is None:
        storage_offset = x.storage_offset()
    reach = sum((k - 1) * s for k, s in zip(size, stride, strict=True)) + 1 if all(size) else 0
    first, end = _memory_of_one(x, bdim)
    if not reach:  # nothing, wherever it lies
        storage_offset = x.storage_offset()
    elif n > 1 and not first <= storage_offset <= storage_offset + reach <= end:
        raise RuntimeError(
            f"vmap: as_strided(size={list(size)}, stride={list(stride)}, storage_offset={storage_offset}) would leave "
            f"the memory of one sample, of shape {logical_shape(x, bdim)}"
        )
    return x.as_strided((n, *size), (batch_stride, *stride), storage_offset), 0


def _memory_of_one(x: Any, bdim: int) -> tuple[int, int]:
    """Return where the memory of the first sample begins and ends: of all that it is a view of, where that is known."""
    step, start = x.stride(bdim), x.storage_offset()
    end = start + sum((n - 1) * s for d, (n, s) in enumerate(zip(x.shape, x.stride(), strict=True)) if d != bdim) + 1
    base = x._base if type(x) is torch.Tensor and current() is None else None
    if base is not None and base.is_contiguous() and base.numel() == x.shape[bdim] * step:
        first = int(base.storage_offset())
        if first <= start < end <= first + step:
            return first, first + step
    return start, max(start, end)


pack.ask(aten.narrow.Tensor, aten.tensor_split.tensor_indices_or_sections)
