"""The backward operator of convolutions: three gradients, of which each is a convolution again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vmap_core.extend import Level, RulePack, ensure_bdim
from vmap_core.extend import named_aten as aten

pack = RulePack("autograd.backward.convolution")


@pack.rule(aten.convolution_backward.default)
def convolution_backward(
    info: Level, in_dims: Any, grad: Any, x: Any, weight: Any, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: Any, output_padding: Any, groups: Any, output_mask: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Gradients (N, O, *), (N, C, *), (O, C / groups, *) -> of the input, the weight and the bias."""
    size = info.batch_size
    grad_bdim, x_bdim, w_bdim = in_dims[:3]
    options = (stride, padding, dilation, transposed, output_padding)
    grad = ensure_bdim(grad, grad_bdim, size)
    x = ensure_bdim(x, x_bdim, size)
    grad_x = grad_weight = grad_bias = None
    if output_mask[2]:
        grad_bias = grad.sum([1, *range(3, grad.ndim)])
    if not size:
        weight_shape = weight.shape if w_bdim is None else [n for d, n in enumerate(weight.shape) if d != w_bdim]
        grad_x = grad.new_zeros(x.shape) if output_mask[0] else None
        grad_weight = grad.new_zeros(0, *weight_shape) if output_mask[1] else None
    elif w_bdim is None:
        if output_mask[0]:
            tensors = (grad.flatten(0, 1), _like(x, x.shape[0] * x.shape[1], *x.shape[2:]), weight)
            out = aten.convolution_backward.default(*tensors, None, *options, groups, (True, False, False))[0]
            grad_x = out.unflatten(0, x.shape[:2])
        if output_mask[1]:
            shape = _like(weight, size * weight.shape[0], *weight.shape[1:])
            tensors = (_wide(grad), _wide(x), shape)
            out = aten.convolution_backward.default(*tensors, None, *options, groups * size, (False, True, False))[1]
            grad_weight = out.unflatten(0, (size, -1))
    elif output_mask[0] or output_mask[1]:
        tensors = (_wide(grad), _wide(x), ensure_bdim(weight, w_bdim, size).flatten(0, 1))
        mask = (output_mask[0], output_mask[1], False)
        out = aten.convolution_backward.default(*tensors, None, *options, groups * size, mask)
        grad_x = out[0].unflatten(1, (size, -1)).movedim(1, 0) if output_mask[0] else None
        grad_weight = out[1].unflatten(0, (size, -1)) if output_mask[1] else None
    results = (grad_x, grad_weight, grad_bias)
    return results, tuple(None if g is None else 0 for g in results)


def _like(x: Tensor, *shape: int) -> Tensor:
    """Return a tensor of a shape, for a kernel that asks no more of it."""
    return x.new_empty(1).expand(shape)


def _wide(x: Tensor) -> Tensor:
    """(B N C *) -> (N B * C *): one group of channels a sample."""
    return x.movedim(0, 1).flatten(1, 2)
