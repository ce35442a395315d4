"""Weights that are one tensor expanded over the batch: shared in the forward pass, per sample in the gradient.

``w = w.detach().requires_grad_()`` in a mapped function gives every sample a weight of its own, without a copy: the
physical leaf has stride 0 along the batch. Seen as any batched weight it would turn each product into a batch of small
ones. But the forward pass may use the one tensor behind it, and so may the gradient of the input; only the gradient of
the weight is per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..levels.recording import current
from ..levels.tensor import BatchedTensor
from ..torch_compat.functorch import transforms_active
from ..torch_compat.mode_stack import stack_size


@dataclass(frozen=True)
class Product:
    """An operation that is linear in a weight, and a bias, on physical tensors with the batch dim in front.

    Attributes:
        forward: ``(x, weight, bias, *options) -> y`` with an unbatched weight and bias (or None).
        backward: ``(grad, x, weight, needs, *options) -> (grad of x, grad of weight, grad of bias)``: the first of x
            as it is, the others per sample; ``needs`` says which of them are wanted, the others may be None.
        expanded: ``(x, weight, bias, *options) -> y`` with a batched weight and bias: the same, the ordinary way.
    """

    forward: Callable[..., Any]
    backward: Callable[..., tuple[Any, Any, Any]]
    expanded: Callable[..., Any]


def is_expanded(x: Any, bdim: int | None) -> bool:
    """Tell whether all samples of a batched tensor are one tensor, expanded."""
    return bdim is not None and x.layout is torch.strided and x.stride(bdim) == 0 and x.shape[bdim] > 1


def product(op: Product, x: Any, weight: Any, bias: Any, *options: Any) -> Any:
    """Apply a product to an expanded weight, with the batch dim in front of all tensors.

    Args:
        op: the operation.
        x: ``(B, *)``.
        weight: ``(B, *)``, expanded (see `is_expanded`).
        bias: ``(B, *)``, expanded, or None.
        options: further arguments of the operation, no tensors.
    """
    if not torch.is_grad_enabled() or not (weight.requires_grad or (bias is not None and bias.requires_grad)):
        return op.forward(x, _one(weight), _one(bias), *options)
    args = (op, options, x, weight, bias)
    if (
        transforms_active()
        or any(type(a) is BatchedTensor for a in args)
        or (stack_size() and current() is not None)  # a program is captured
    ):
        return _Unexpanded.apply(*args)
    return super(Function, _Unexpanded).apply(*args)  # type: ignore[misc]  # the C++ call, without torch.func's detours


def _one(x: Any) -> Any:
    return None if x is None else x.select(0, 0)


class _Unexpanded(Function):
    generate_vmap_rule = True
    backward_is_linear = True  # so a sum of gradients will do, where no sample differs (see vmap-autograd's `function`)

    @staticmethod
    def forward(op: Product, options: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.forward(x, _one(weight), _one(bias), *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.op, ctx.options, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.strides = output.stride()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        if not torch.is_grad_enabled():
            return None, None, *ctx.op.backward(grad, x, _one(weight), needs, *ctx.options)
        # To be differentiated again: by the ordinary way, which autograd knows. One may have been computed from another,
        # which is not to get its gradient too: so by views of them.
        x, weight, bias = (t if t is None else t.view_as(t) for t in (x, weight, bias))
        y = ctx.op.expanded(x, weight, bias, *ctx.options)
        at: list[Any] = [t for t, need in zip((x, weight, bias), needs, strict=True) if need]
        grads = iter(torch.autograd.grad(y, at, grad, create_graph=True))
        return None, None, *(next(grads) if need else None for need in needs)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, x_tangent: Any, weight_tangent: Any, bias_tangent: Any) -> Any:
        x, weight, _ = ctx.saved_tensors
        out = ctx.op.expanded(x, weight_tangent, bias_tangent, *ctx.options)
        if isinstance(x_tangent, Tensor):
            out = out + ctx.op.forward(x_tangent, _one(weight), None, *ctx.options)
        if out.stride() == ctx.strides:
            return out
        return torch.empty_strided(out.shape, ctx.strides, dtype=out.dtype, device=out.device).copy_(out)


def cast(x: Any, bdim: int | None, dtype: torch.dtype) -> Any:
    """Cast a tensor; one that is expanded over the batch stays so."""
    if type(x) is BatchedTensor or not is_expanded(x, bdim):
        return x.to(dtype)
    return _Cast.apply(x, bdim, dtype) if x.requires_grad and torch.is_grad_enabled() else _cast_one(x, bdim, dtype)


def _cast_one(x: Any, bdim: Any, dtype: torch.dtype) -> Any:
    return x.select(bdim, 0).to(dtype).unsqueeze(bdim).expand(x.shape)


class _Cast(Function):
    """The gradient stays per sample."""

    generate_vmap_rule = backward_is_linear = True
    forward = staticmethod(_cast_one)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.before, ctx.after = inputs[0].dtype, inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad.to(ctx.before), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, _: None, __: None) -> Any:
        return tangent.to(ctx.after)
