"""Backward passes of layers that normalise, which may be differentiated again.

PyTorch hands them the mean and the reciprocal deviation of the forward pass as tensors without a graph. What records them computes both
from the input once more, for a second derivative depends on it through them, too.
"""

from __future__ import annotations

from typing import Any

import torch

from vmap_core.extend import RulePack
from vmap_core.extend import named_aten as aten

pack = RulePack("nn.normalization_backward")


def _statistics(x: Any, dims: list[int], mean: Any, deviation: Any) -> tuple[Any, Any]:
    """Return mean and reciprocal deviation over dims, with the graph of the input where one is recorded."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return mean, deviation
    variance = x.var(dims, correction=0, keepdim=True)
    eps = deviation.detach() ** -2 - variance.detach()
    return x.mean(dims, keepdim=True), (variance + eps).rsqrt()


def _gradients(
    grad: Any,
    x: Any,
    weight: Any,
    mean: Any,
    deviation: Any,
    over: list[int],
    others: list[int],
    mask: Any,
    constant: bool,
) -> tuple[Any, ...]:
    """Return the gradients of input, weight and bias.

    Args:
        grad: of the output, (*).
        x: the input, (*).
        weight: of as many dims as the input, or None.
        mean: of the input, (*) with ones in the dims ``over``.
        deviation: the reciprocal deviation, likewise.
        over: the dims that are normalised over.
        others: the dims that weight and bias do not have.
        mask: which of the three are asked for.
        constant: mean and deviation do not depend on the input (running statistics).
    """
    scaled = (x - mean) * deviation
    wide = grad if weight is None else grad * weight
    result = None
    if mask[0]:
        result = wide
        if not constant:
            result = wide - wide.mean(over, True) - scaled * (wide * scaled).mean(over, True)
        result = result * deviation
    by_weight = (grad * scaled).sum(others) if mask[1] and others else grad * scaled if mask[1] else None
    by_bias = grad.sum(others) if mask[2] and others else grad if mask[2] else None
    return result, by_weight, by_bias


def _as(results: tuple[Any, ...], *likes: Any) -> tuple[Any, ...]:
    return tuple(r if r is None else r.to(like.dtype) for r, like in zip(results, likes, strict=True))


@pack.composite(aten.native_layer_norm_backward.default)
def native_layer_norm_backward(grad_out, x, normalized_shape, mean, rstd, weight, bias, output_mask):
    """(*, *n), (*, *n) -> (*, *n), (*n), (*n)."""
    rank = x.dim() - len(normalized_shape)
    over, others = list(range(rank, x.dim())), list(range(rank))
    grad, wide = grad_out.to(mean.dtype), x.to(mean.dtype)
    mean, rstd = _statistics(wide, over, mean, rstd)
    mask = [output_mask[0], output_mask[1] and weight is not None, output_mask[2] and bias is not None]
    out = _gradients(grad, wide, weight, mean, rstd, over, others, mask, False)
    return _as(out, x, x if weight is None else weight, x if bias is None else bias)


@pack.composite(aten.native_batch_norm_backward.default)
def native_batch_norm_backward(
    grad_out, x, weight, running_mean, running_var, save_mean, save_invstd, train, eps, output_mask
):
    """(N, C, *), (N, C, *) -> (N, C, *), (C), (C)."""
    over, shape = [0, *range(2, x.dim())], (1, -1, *(1,) * (x.dim() - 2))
    dtype = (save_mean if train else running_mean).dtype
    grad, wide = grad_out.to(dtype), x.to(dtype)
    if train:
        mean, deviation = _statistics(wide, over, save_mean.reshape(shape), save_invstd.reshape(shape))
    else:
        mean, deviation = running_mean.reshape(shape), (running_var + eps).rsqrt().reshape(shape)
    scale = None if weight is None else weight.reshape(shape)
    out = _gradients(grad, wide, scale, mean, deviation, over, over, output_mask, not train)
    return _as(out, x, *(2 * (x if weight is None else weight,)))
