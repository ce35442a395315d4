"""cuDNN's batch normalisation: the mapped dim joins the channels, so that every sample keeps its own statistics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vmap_core.extend import (
    InplaceError,
    Level,
    RulePack,
    ensure_bdim,
    promote,
    to_front,
    unwrap,
    user_location,
    wrap,
)
from vmap_core.extend import named_aten as aten

from ._merge import Call, contiguous

pack = RulePack("cuda.normalization")


def _wide(x: Tensor, bdim: int | None, size: int) -> Tensor:
    """(N, C, *) per sample -> (N, B C, *)."""
    return contiguous(ensure_bdim(x, bdim, size).movedim(0, 1).flatten(1, 2))


def _channels(x: Any, bdim: int | None, size: int) -> Any:
    """(C) per sample -> (B C)."""
    return None if x is None else ensure_bdim(x, bdim, size).flatten()


@pack.logical(aten.cudnn_batch_norm.default)
def cudnn_batch_norm(
    info: Level, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
    exponential_average_factor: float, epsilon: float,
) -> Any:  # fmt: skip
    """(N, C, *), four times (C) -> (N, C, *), mean and reciprocal deviation (C), and memory of cuDNN's.

    The schema does not say that the kernel writes to the running statistics in training.
    """
    options = (training, exponential_average_factor, epsilon)
    if training and running_mean is not None:
        try:
            promote(info, running_mean, aten.cudnn_batch_norm.default)
            promote(info, running_var, aten.cudnn_batch_norm.default)
        except InplaceError:
            raise InplaceError(
                f"vmap: cudnn_batch_norm in training would update running statistics that all samples share, at "
                f"{user_location()}. Instead: training=False, no running statistics, or statistics that are mapped over."
            ) from None
    values, dims, batched = unwrap(info, (x, weight, bias, running_mean, running_var))
    if not batched:
        return wrap(info, aten.cudnn_batch_norm.default(*values, *options), None)
    size = info.batch_size
    if not size:
        call = Call(aten.cudnn_batch_norm.default, (*dims, None, None, None), (*values, *options), {})
        return wrap(info, *call.looped(info, warn=False))
    x, *parameters = values
    wide = _wide(x, dims[0], size)
    weight, bias, *running = (_channels(p, d, size) for p, d in zip(parameters, dims[1:], strict=True))
    if training:  # written to: a copy, written back
        running = [None if r is None else r.clone() for r in running]
    out, mean, rstd, reserve = aten.cudnn_batch_norm.default(wide, weight, bias, *running, *options)
    if training:
        for target, d, new in zip(values[3:], dims[3:], running, strict=True):
            if target is not None:
                to_front(target, d).copy_(new.unflatten(0, (size, -1)))
    channels = wide.shape[1] // size
    stats = [s.reshape(size, channels) if s.numel() else s.reshape(size, 0) for s in (mean, rstd)]
    return wrap(info, (out.unflatten(1, (size, channels)), *stats, reserve), (1, 0, 0, None))


@pack.rule(aten.cudnn_batch_norm_backward.default)
def cudnn_batch_norm_backward(info: Level, in_dims: Any, *args: Any) -> Any:
    """(N, C, *), (N, C, *), five times (C) -> gradients (N, C, *), (C), (C).

    cuDNN's memory is of the whole forward call. If that was a call on one sample, the backward calls are so too.
    """
    call = Call(aten.cudnn_batch_norm_backward.default, in_dims, args, {})
    size = info.batch_size
    if not size:
        return tuple(map(call.empty, ("input", "weight", "weight"))), 0
    of_one = not call.batched("save_mean")
    if call.batched("reserveSpace") or (of_one and call.values["reserveSpace"].numel()):
        return call.looped(info)
    wide = {n: _wide(call.values[n], call.dims[n], size) for n in ("input", "grad_output")}
    names = ("weight", "running_mean", "running_var", "save_mean", "save_var")
    channels = {n: _channels(call.values[n], call.dims[n], size) for n in names}
    grad, grad_weight, grad_bias = call.run(**wide, **channels)
    pair = (size, wide["input"].shape[1] // size)
    return (grad.unflatten(1, pair), grad_weight.unflatten(0, pair), grad_bias.unflatten(0, pair)), (1, 0, 0)
