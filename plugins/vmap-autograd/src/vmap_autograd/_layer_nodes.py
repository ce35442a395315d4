"""Formulas of nodes with kernels of their own (see `_nodes`): convolutions, pooling, softmax, normalization, indices.

What the node has saved is the same for all vectors, so it is used as it is: a kernel that wants it beside each vector would get
copies. Where only its shape counts, an expanded tensor without values stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vmap_core.extend import named_aten as aten

Formula = Callable[[Any, Any, Any], Any]


def signed(number: int) -> int:
    """Return a number that a node has saved as what it was: PyTorch shows them without a sign."""
    return number if number < 2**63 else number - 2**64


def dim_of(g: Any, dim: int) -> int:
    """Return the physical dim of a sample's dim that a node has saved."""
    dim = signed(dim)
    return dim + 1 if dim >= 0 else dim + g.ndim


def _of_shape(like: Any, *shape: int) -> Any:
    return like.new_empty(1).expand(shape)


def _convolution(node: Any, g: Any, needed: Any) -> Any:
    """The vectors are further images for the gradient of the input, further channels for that of the weight."""
    x, weight, groups = node._saved_input, node._saved_weight, node._saved_groups
    options = (
        node._saved_stride,
        node._saved_padding,
        node._saved_dilation,
        node._saved_transposed,
        node._saved_output_padding,
    )
    n, images, channels = g.shape[:3]
    first = second = third = None
    if not n:
        shapes = x.shape, weight.shape, (channels,)
        return tuple([g.new_zeros(0, *shape) if need else None for shape, need in zip(shapes, needed, strict=True)])
    if needed[0]:
        tensors = g.flatten(0, 1), _of_shape(x, n * images, *x.shape[1:]), weight
        first = aten.convolution_backward.default(*tensors, None, *options, groups, (True, False, False))[0]
        first = first.unflatten(0, (n, images))
    if needed[1]:
        out = 1 if node._saved_transposed else 0  # which of the weight's dims is that of the channels of g
        shape = list(weight.shape)
        shape[out] *= n
        of_group = g.unflatten(2, (groups, -1)).permute(1, 2, 0, *range(3, g.ndim + 1))
        tensors = of_group.reshape(images, n * channels, *g.shape[3:]), x, _of_shape(weight, *shape)
        second = aten.convolution_backward.default(*tensors, None, *options, groups, (False, True, False))[1]
        if out:
            second = second.unflatten(1, (n, -1)).movedim(1, 0)
        else:
            second = second.unflatten(0, (groups, n, -1)).movedim(1, 0).flatten(1, 2)
    if needed[2]:
        third = g.sum([1, *range(3, g.ndim)])
    return first, second, third


def _max_pool2d(node: Any, g: Any, needed: Any) -> Any:
    x, places = node._saved_self, node._saved_result1
    if torch.is_grad_enabled() and x.requires_grad and not g.requires_grad:
        return NotImplemented  # the node's own result has a graph
    places = places.flatten(-2).expand(g.shape[0], *places.shape[:-2], -1)
    zeros = g.new_zeros(g.shape[0], *x.shape[:-2], x.shape[-2] * x.shape[-1])
    return zeros.scatter_add_(-1, places, g.flatten(-2)).unflatten(-1, x.shape[-2:])


def _images(backward: Callable[[Any, Any, Any], Any]) -> Formula:
    """Make the formula of an operator on images, of whose input only the shape counts: the vectors are further images."""

    def formula(node: Any, g: Any, needed: Any) -> Any:
        x = node._saved_self
        lead = g.shape[: g.ndim - 3]
        out = backward(node, g.reshape(-1, *g.shape[-3:]), _of_shape(x, lead.numel(), *x.shape[-3:]))
        return out.reshape(*lead, *x.shape[-3:])

    return formula


def _avg_pool2d(node: Any, g: Any, x: Any) -> Any:
    sizes = node._saved_kernel_size, node._saved_stride, node._saved_padding
    divisor = node._saved_divisor_override
    divisor = divisor if divisor is None else signed(divisor)
    return aten.avg_pool2d_backward.default(g, x, *sizes, node._saved_ceil_mode, node._saved_count_include_pad, divisor)


def _adaptive_avg_pool2d(node: Any, g: Any, x: Any) -> Any:
    return aten._adaptive_avg_pool2d_backward.default(g, x)


def _softmax(node: Any, g: Any, needed: Any) -> Any:
    out = node._saved_result
    if not out.ndim or out.dtype != g.dtype:
        return NotImplemented
    part = g * out
    return torch.addcmul(part, out, part.sum(dim_of(g, node._saved_dim), keepdim=True), value=-1)


def _log_softmax(node: Any, g: Any, needed: Any) -> Any:
    out = node._saved_result
    if not out.ndim or out.dtype != g.dtype:
        return NotImplemented
    return torch.addcmul(g, out.exp(), g.sum(dim_of(g, node._saved_dim), keepdim=True), value=-1)


def _layer_norm(node: Any, g: Any, needed: Any) -> Any:
    """Not to be differentiated again: the mean and the deviation are saved without their graph."""
    x, mean, scale, weight = node._saved_input, node._saved_result1, node._saved_result2, node._saved_weight
    if torch.is_grad_enabled() or mean.dtype != g.dtype:
        return NotImplemented
    dims = [*range(g.ndim - len(node._saved_normalized_shape), g.ndim)]
    centered = (x - mean) * scale
    first = second = third = None
    if needed[0]:
        part = g if weight is None else g * weight
        first = part - part.mean(dims, keepdim=True)
        first = torch.addcmul(first, centered, (part * centered).mean(dims, keepdim=True), value=-1) * scale
    others = [*range(1, g.ndim - len(dims))]
    if needed[1]:
        second = (g * centered).sum(others) if others else g * centered
    if needed[2]:
        third = g.sum(others) if others else g
    return first, second, third


def _index(node: Any, g: Any, needed: Any) -> Any:
    """The indices that are tensors must stand side by side: else their dims go in front, before the vectors'."""
    indices = node._saved_indices
    at = [i for i, index in enumerate(indices) if index is not None]
    if not at or at[-1] - at[0] >= len(at):
        return NotImplemented
    zeros = g.new_zeros(g.shape[0], *node._saved_self_sym_sizes)
    return aten.index_put_.default(zeros, [None, *indices], g, True)


def _gather(node: Any, g: Any, needed: Any) -> Any:
    x, index = node._saved_self, node._saved_index
    if not x.ndim or not index.ndim or node._saved_sparse_grad:
        return NotImplemented
    return g.new_zeros(g.shape[0], *x.shape).scatter_add_(dim_of(g, node._saved_dim), index.expand(g.shape), g)


def _index_select(node: Any, g: Any, needed: Any) -> Any:
    sizes = node._saved_self_sym_sizes
    if not sizes:
        return NotImplemented
    return g.new_zeros(g.shape[0], *sizes).index_add_(dim_of(g, node._saved_dim), node._saved_index, g)


def _cumsum(node: Any, g: Any, needed: Any) -> Any:
    if g.ndim == 1:
        return g
    dim = dim_of(g, node._saved_dim)
    return g.flip(dim).cumsum(dim).flip(dim)


FORMULAS: dict[str, Formula] = {
    "AdaptiveAvgPool2DBackward0": _images(_adaptive_avg_pool2d),
    "AvgPool2DBackward0": _images(_avg_pool2d),
    "ConvolutionBackward0": _convolution,
    "CumsumBackward0": _cumsum,
    "GatherBackward0": _gather,
    "IndexBackward0": _index,
    "IndexSelectBackward0": _index_select,
    "LogSoftmaxBackward0": _log_softmax,
    "MaxPool2DWithIndicesBackward0": _max_pool2d,
    "NativeLayerNormBackward0": _layer_norm,
    "SoftmaxBackward0": _softmax,
}
