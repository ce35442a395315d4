"""Copies, and moves between dtypes, devices and layouts."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UnsupportedError
from ..levels.layout import contiguous_strides
from ..levels.read import every_sample
from ..rulekit.dims import below, ensure_bdim, logical_rank, to_front
from ..rulekit.rule import Rule, RulePack, may_return_self
from ..torch_compat.bindings import emitter
from ..torch_compat.operators import named_aten as aten
from .view import logical_shape

pack = RulePack("core.cast")


def as_number(value: Any, dtype: torch.dtype) -> Any:
    """Return a number of each sample in another dtype, as PyTorch converts one that it reads: it must fit.

    Raises:
        RuntimeError: one does not.
    """
    if torch.bool in (dtype, value.dtype) or value.dtype == dtype:
        return value.to(dtype)
    (low, high), (own_low, own_high) = _limits(dtype), _limits(value.dtype)
    real = not dtype.is_complex and value.dtype.is_complex
    whole = not (dtype.is_floating_point or dtype.is_complex)
    inexact = value.dtype.is_floating_point or value.dtype.is_complex
    if real or (whole and inexact) or not low <= own_low <= own_high <= high:
        numbers = every_sample(value).detach()
        parts = torch.view_as_real(numbers.resolve_conj()) if value.dtype.is_complex else numbers.unsqueeze(-1)
        low = -high if not inexact else low  # a whole number may be negative where there is no sign: it wraps
        fits = (parts >= low) & (parts <= high) | (not whole) & ~parts.isfinite()
        if real:
            fits &= torch.stack([torch.ones_like(parts[..., 0]), parts[..., 1] == 0], -1).bool()
        if not bool(fits.all()):
            raise RuntimeError(
                f"value cannot be converted to type {_NAMES.get(dtype, f'{str(dtype)[6:]}_t')} without overflow"
            )
    return (value.real if real else value).to(dtype)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    info = torch.finfo(dtype) if dtype.is_floating_point or dtype.is_complex else torch.iinfo(dtype)
    return info.min, info.max


_NAMES = {
    torch.float32: "float", torch.float64: "double", torch.float16: "c10::Half", torch.bfloat16: "c10::BFloat16",
    torch.complex64: "c10::complex<float>", torch.complex128: "c10::complex<double>",
}  # fmt: skip


def _rank_of(memory_format: torch.memory_format | None) -> int | None:
    return {torch.channels_last: 4, torch.channels_last_3d: 5}.get(memory_format) if memory_format else None


def _laid_out(x: Any, bdim: int | None, memory_format: Any) -> tuple[Any, int | None]:
    """Return each sample in a channels-last layout: channels of the physical tensor last, all the same."""
    rank = logical_rank(x, bdim)
    if rank != _rank_of(memory_format):
        raise RuntimeError(f"required rank {_rank_of(memory_format)} tensor to use channels_last format")
    x = to_front(x, bdim)
    order = [0, 1, *range(3, rank + 1), 2]
    back = [0, 1, rank, *range(2, rank)]
    return x.permute(order).contiguous().permute(back), 0


def _with_layout(op: Any) -> Rule:
    """Make the rule of an operator that keeps values and takes a ``memory_format``."""
    at = [a.name for a in op._schema.arguments].index("memory_format")
    keyword = op._schema.arguments[at].kwarg_only
    emit = emitter(op)

    def same_values(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        bdim = in_dims[0]
        memory_format = kwargs.get("memory_format") if keyword else (args[at - 1] if len(args) >= at else None)
        if _rank_of(memory_format) is None:
            if memory_format is torch.contiguous_format and bdim:
                x, bdim = to_front(x, bdim), 0  # contiguous samples
            return emit(x, *args, **kwargs), bdim
        plain = torch.preserve_format
        if keyword:
            out = op(x, *args, **{**kwargs, "memory_format": plain})
        else:
            out = op(x, *args[: at - 1], plain, *args[at:])
        return _laid_out(out, bdim, memory_format)

    return may_return_self(same_values)  # ``x.to(x.dtype) is x``


pack.family(
    _with_layout,
    aten._to_copy.default,
    aten.clone.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
)


@pack.rule(aten.contiguous.default)
@may_return_self
def contiguous(info, in_dims, x, *, memory_format=torch.contiguous_format):
    """(*) -> (*), each sample contiguous; the same tensor if they are."""
    bdim = in_dims[0]
    shape, strides = ([n for d, n in enumerate(sizes) if d != bdim] for sizes in (x.shape, x.stride()))
    if contiguous_strides(torch.Size(shape), tuple(strides), memory_format):
        return x, bdim
    if _rank_of(memory_format) is None:
        return to_front(x, bdim).clone(memory_format=torch.contiguous_format), 0
    return _laid_out(x, bdim, memory_format)


@pack.logical(aten.to.other, aten.type_as.default)
def to_other(info, x, other, non_blocking=False, copy=False, memory_format=None):
    """(*) -> (*), with the dtype and device of another tensor; itself if it has them."""
    with info.pushed():
        return x.to(other.device, other.dtype, non_blocking, copy, memory_format=memory_format)


@pack.rule(aten.to_sparse.default, aten._to_sparse.default)
def to_sparse(info, in_dims, x, *, layout=None, blocksize=None, dense_dim=None):
    """(*) -> sparse (*)."""
    if layout not in (None, torch.sparse_coo) or blocksize is not None or dense_dim is not None:
        raise UnsupportedError(f"vmap: of the sparse layouts only COO has a batching rule, not {layout}")
    return to_front(x, in_dims[0]).to_sparse(), 0


@pack.rule(aten.to_sparse.sparse_dim, aten._to_sparse.sparse_dim)
def to_sparse_dim(info, in_dims, x, sparse_dim):
    """(*) -> sparse (*), the dims after the first ``sparse_dim`` dense."""
    return to_front(x, in_dims[0]).to_sparse(sparse_dim + 1), 0


@pack.rule(aten.to_dense.default, aten._to_dense.default)
@may_return_self
def to_dense(info, in_dims, x, dtype=None, *, masked_grad=None):
    """Sparse (*) -> (*)."""
    return x.to_dense(dtype, masked_grad=masked_grad), in_dims[0]


@pack.rule(aten.copy_.default)
def copy_(info, in_dims, x, src, non_blocking=False):
    """(*), (*s) -> (*) in place, broadcast and cast."""
    x.copy_(_as(x, in_dims[0], src, in_dims[1]) if isinstance(src, torch.Tensor) else src, non_blocking)
    return x, in_dims[0]


@pack.rule(aten.copy.default)
def copy(info, in_dims, x, src, non_blocking=False):
    """(*), (*s) -> (*): the source, broadcast and cast."""
    x = ensure_bdim(x, in_dims[0], info.batch_size)
    return aten.copy.default(x, _as(x, 0, src, in_dims[1]), non_blocking), 0


def _as(x: Any, bdim: int, src: Any, src_bdim: int | None) -> Any:
    """Return the source with its dims where those of ``x`` are."""
    rank = x.ndim - 1
    short = rank - logical_rank(src, src_bdim)
    if short < 0:
        shape = logical_shape(src, src_bdim)
        if any(n != 1 for n in shape[: -rank or None]):
            raise RuntimeError(f"output with shape {logical_shape(x, bdim)} doesn't match the broadcast shape {shape}")
        for _ in range(-short):
            src = src.squeeze(1 if src_bdim == 0 else 0)
            src_bdim = src_bdim - 1 if src_bdim else src_bdim
        short = 0
    if src_bdim is None:
        return src if src.ndim <= rank - bdim else src.reshape(*(1,) * short, *src.shape).unsqueeze(bdim)
    return below(src, src_bdim, rank, bdim)
