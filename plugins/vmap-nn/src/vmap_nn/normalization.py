"""Normalisation layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import (
    InplaceError,
    Level,
    RulePack,
    asker,
    ensure_bdim,
    promote,
    to_front,
    unwrap,
    user_location,
    wrap,
)
from vmap_core.extend import named_aten as aten

pack = RulePack("nn.normalization")


def _affine(out: Tensor, parameters: Any, shape: tuple[int, ...]) -> Tensor:
    """Scale and shift a normalised tensor, (B, *), by parameters of which some are batched."""
    for parameter, bdim, add in parameters:
        if parameter is not None:
            p = to_front(parameter, bdim)
            p = p.reshape(*p.shape[: bdim is not None], *shape)
            out = out + p if add else out * p
    return out


def _in_their_dtype(x: Tensor, *parameters: Any) -> Tensor:
    """Return a 16-bit input in the dtype of 32-bit parameters, in which PyTorch then computes."""
    dtypes = {p.dtype for p in parameters if p is not None} or {x.dtype}
    if dtypes not in ({x.dtype}, {torch.float32}) or (dtypes != {x.dtype} and x.dtype.itemsize != 2):
        raise RuntimeError(f"mixed dtype: expected parameters of {x.dtype} or torch.float32, got {dtypes}")
    return x.to(*dtypes)


# Where the parameters are shared it is the kernel that checks them.
_ask_layer_norm = asker(aten.native_layer_norm.default)
_ask_group_norm = asker(aten.native_group_norm.default)
_ask_batch_norm = asker(aten.native_batch_norm.default)


@pack.rule(aten.native_layer_norm.default)
def native_layer_norm(info, in_dims, x, normalized_shape, weight, bias, eps):
    """(*, *n), (*n), (*n) -> (*, *n), mean and reciprocal deviation (*, 1...)."""
    x_bdim, _, w_bdim, b_bdim = in_dims[:4]
    shape = tuple(normalized_shape)
    if w_bdim is not None or b_bdim is not None or len(shape) > x.ndim - (x_bdim is not None):
        _ask_layer_norm(info, in_dims, (x, shape, weight, bias, eps), {})
    if w_bdim is None and b_bdim is None:
        return aten.native_layer_norm.default(to_front(x, x_bdim), shape, weight, bias, eps), 0
    wide = _in_their_dtype(ensure_bdim(x, x_bdim, info.batch_size), weight, bias)
    out, mean, rstd = aten.native_layer_norm.default(wide, shape, None, None, eps)
    spread = (1,) * (out.ndim - 1 - len(shape)) + shape
    return (_affine(out, ((weight, w_bdim, False), (bias, b_bdim, True)), spread).to(x.dtype), mean, rstd), 0


@pack.rule(aten.layer_norm.default)
def layer_norm(info, in_dims, x, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    """(*, *n), (*n), (*n) -> (*, *n)."""
    (out, _, _), _ = native_layer_norm(info, (*in_dims, None, None)[:4], x, normalized_shape, weight, bias, eps)
    return out, 0


@pack.rule(aten.native_group_norm.default)
def native_group_norm(info, in_dims, x, weight, bias, N, C, HxW, group, eps):
    """(N, C, *), (C), (C) -> (N, C, *), mean and reciprocal deviation (N, group)."""
    x_bdim, w_bdim, b_bdim = in_dims[:3]
    x = ensure_bdim(x, x_bdim, info.batch_size)
    shared = w_bdim is None and b_bdim is None
    if not shared:
        _ask_group_norm(info, (0, w_bdim, b_bdim), (x, weight, bias, N, C, HxW, group, eps), {})
    wide = x if shared else _in_their_dtype(x, weight, bias)
    out, mean, rstd = aten.native_group_norm.default(
        wide.flatten(0, 1).contiguous(),
        weight if shared else None,
        bias if shared else None,
        x.shape[0] * N,
        C,
        HxW,
        group,
        eps,
    )
    out, mean, rstd = out.reshape(x.shape), mean.reshape(x.shape[0], N, group), rstd.reshape(x.shape[0], N, group)
    if not shared:
        spread = (1, C, *(1,) * (x.ndim - 3))
        out = _affine(out, ((weight, w_bdim, False), (bias, b_bdim, True)), spread).to(x.dtype)
    return (out, mean, rstd), 0


def _channels(parameter: Any, bdim: int | None, size: int) -> Any:
    """(C) per sample -> (B * C), one channel of the folded input each."""
    return None if parameter is None else ensure_bdim(parameter, bdim, size).reshape(-1)


@pack.logical(aten.native_batch_norm.default)
def native_batch_norm(info, x, weight, bias, running_mean, running_var, training, momentum, eps):
    """(N, C, *), four times (C) -> (N, C, *), mean and reciprocal deviation (C).

    The mapped dim is folded into the channels, so that every sample keeps statistics of its own.
    """
    if training and running_mean is not None:
        _own_statistics(info, running_mean, running_var)
    values, dims, batched = unwrap(info, (x, weight, bias, running_mean, running_var))
    if not batched:
        return wrap(info, aten.native_batch_norm.default(*values, training, momentum, eps), None)
    return wrap(info, *_batch_norm(info, values, dims, training, momentum, eps))


@pack.logical(aten.batch_norm.default)
def batch_norm(info, x, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled):
    """(N, C, *), four times (C) -> (N, C, *). In evaluation what is shared leaves the mapped dim to N."""
    values, dims, _ = unwrap(info, (x, weight, bias, running_mean, running_var))
    if not training and dims[1:] == [None] * 4 and values[0].ndim > 2 and running_mean is not None:
        x = to_front(values[0], dims[0])
        out = aten.batch_norm.default(x.flatten(0, 1), *values[1:], training, momentum, eps, cudnn_enabled)
        return wrap(info, out.reshape(x.shape), 0)
    with info.pushed():
        if x.numel():
            return torch.native_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)[0]
        out = x * (1 if weight is None else weight[0])  # as PyTorch has it
        return out if bias is None else out + bias[0]


def _check_channels(values: list[Any], dims: list[Any]) -> None:
    """Raise where a vector has not one element for each channel: the kernel would read beyond its end."""
    x, *vectors = (
        [n for i, n in enumerate(v.shape) if i != d] for v, d in zip(values, dims, strict=True) if v is not None
    )
    for v in vectors:
        if v != x[1:2]:
            raise RuntimeError(
                f"batch_norm: weight, bias, running_mean, running_var should contain {x[1:2]} elements, not {v}"
            )


def _own_statistics(info: Level, *statistics: Any) -> None:
    """Give statistics that were made inside the function a batch dim; refuse those from outside."""
    try:
        for tensor in statistics:
            promote(info, tensor, aten.native_batch_norm.default)
    except InplaceError:
        raise InplaceError(
            f"vmap: batch_norm in training would update running statistics that all samples share, at "
            f"{user_location()}. Instead: module.eval(); or track_running_stats=False (for a whole model: "
            f"torch.func.replace_all_batch_norm_modules_); or out, buffers = vmap_nn.call_with_buffers(module, x), which "
            f"returns the statistics of each sample; or map over the statistics with in_dims."
        ) from None


def _batch_norm(
    info: Level, values: list[Any], dims: list[Any], training: bool, momentum: float, eps: float
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    x, weight, bias, running_mean, running_var = values
    x_bdim, w_bdim, b_bdim, m_bdim, v_bdim = dims
    size = info.batch_size
    _check_channels(values, dims)
    if len({v.dtype for v in values if v is not None}) > 1:
        _ask_batch_norm(info, tuple(dims), (*values, training, momentum, eps), {})
    x = ensure_bdim(x, x_bdim, size).movedim(0, 1)  # (N B C *)
    if not size:
        saved = x.new_empty(0, x.shape[2] if training else 0)
        return (x.new_empty(x.shape), saved, saved.clone()), (1, 0, 0)
    mean, var = _channels(running_mean, m_bdim, size), _channels(running_var, v_bdim, size)
    if training and mean is not None:  # updated in place, then written back
        mean, var = mean.clone(), var.clone()
    out, save_mean, save_rstd = aten.native_batch_norm.default(
        x.flatten(1, 2),
        _channels(weight, w_bdim, size),
        _channels(bias, b_bdim, size),
        mean,
        var,
        training,
        momentum,
        eps,
    )
    if training and running_mean is not None:
        to_front(running_mean, m_bdim).copy_(mean.reshape(size, -1))
        to_front(running_var, v_bdim).copy_(var.reshape(size, -1))
    channels = x.shape[2]
    stats = [s.reshape(size, channels) if s.numel() else s.reshape(size, 0) for s in (save_mean, save_rstd)]
    return (out.reshape(x.shape), *stats), (1, 0, 0)


@pack.composite(aten._native_batch_norm_legit.default)
def native_batch_norm_legit(x, weight, bias, running_mean, running_var, training, momentum, eps):
    """native_batch_norm, which its schema says writes to the statistics."""
    return torch.native_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)


@pack.composite(aten._native_batch_norm_legit.no_stats)
def native_batch_norm_without_statistics(x, weight, bias, training, momentum, eps):
    """native_batch_norm with the statistics of the batch."""
    return torch.native_batch_norm(x, weight, bias, None, None, training, momentum, eps)


@pack.composite(aten._weight_norm_interface.default)
def weight_norm(v, g, dim=0):
    """(*), (1, n, 1...) -> (*) scaled to the norms g, and the norms it had."""
    norm = torch.norm_except_dim(v.float() if v.dtype == torch.bfloat16 else v, 2, dim)
    return (v * (g / norm)).to(v.dtype), norm
