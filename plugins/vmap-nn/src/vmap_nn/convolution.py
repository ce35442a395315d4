"""Convolutions: a mapped input is folded into N; mapped weights make one grouped convolution, or a large one each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Product, RulePack, asker, ensure_bdim, is_expanded, product, settled, to_front
from vmap_core.extend import named_aten as aten

pack = RulePack("nn.convolution")


_ask = asker(torch.convolution)


@pack.rule(aten.convolution.default)
def convolution(info, in_dims, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """(N, C, *), (O, C / groups, *), (O) -> (N, O, *)."""
    if bias is not None:
        at = int(transposed)
        channels = weight.shape[at + (in_dims[1] is not None and in_dims[1] <= at)] * (groups if transposed else 1)
        if bias.dtype != x.dtype or [n for d, n in enumerate(bias.shape) if d != in_dims[2]] != [channels]:
            options = (stride, padding, dilation, transposed, output_padding, groups)
            dtype = _ask(info, in_dims, (x, weight, bias, *options), {})
            bias = bias if dtype is None else bias.to(dtype)
    out, bdim = _convolution(
        info, in_dims, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )
    if not out.numel() and info.batch_size:  # some kernels refuse what would be empty
        _ask(info, in_dims, (x, weight, bias, stride, padding, dilation, transposed, output_padding, groups), {})
    return settled(out, bdim)  # the images of a sample may lie between those of others


def _convolution(info, in_dims, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    x_bdim, w_bdim, b_bdim = in_dims[:3]
    options = (stride, padding, dilation, transposed, output_padding)
    if is_expanded(weight, w_bdim) and (bias is None or is_expanded(bias, b_bdim)):
        tensors = (ensure_bdim(x, x_bdim, info.batch_size), to_front(weight, w_bdim), bias)
        if bias is not None:
            tensors = (*tensors[:2], to_front(bias, b_bdim))
        return product(CONVOLUTION, *tensors, *options, groups), 0
    if b_bdim is not None and w_bdim is None:
        bias = to_front(bias, b_bdim).contiguous()  # else the result would lie as it does
        spread = bias.reshape(bias.shape[0], 1, bias.shape[1], *(1,) * (weight.ndim - 2))
        if x_bdim is None:
            return aten.convolution.default(x, weight, None, *options, groups) + spread, 0
        out, bdim = _convolution(info, (x_bdim, None, None), x, weight, None, *options, groups)
        return to_front(out, bdim) + spread, 0
    if w_bdim is None:
        x = to_front(x, x_bdim)
        out = aten.convolution.default(x.flatten(0, 1), weight, bias, *options, groups)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0
    weight = to_front(weight, w_bdim)
    size = info.batch_size
    if bias is not None:
        bias = ensure_bdim(bias, b_bdim, size)
    if not size:
        one = aten.convolution.default(
            x if x_bdim is None else x.new_zeros([n for d, n in enumerate(x.shape) if d != x_bdim]),
            weight.new_zeros(weight.shape[1:]), None, *options, groups,
        )  # fmt: skip
        return one.new_empty(0, *one.shape), 0
    if x_bdim is None and groups == 1 and not transposed:  # one image, all members' filters
        bias = None if bias is None else bias.reshape(-1)
        out = aten.convolution.default(x, weight.flatten(0, 1), bias, *options, 1)
        return _members(out, size), 1
    return _grouped(ensure_bdim(x, x_bdim, size), weight, bias, *options, groups), 0


def _complex(info, in_dims, x, weight, bias, *options):
    """(N, C, *), (O, C / groups, *), (O) -> (N, O, *), all complex: by three real ones, as PyTorch does."""
    x_bdim, w_bdim, b_bdim = in_dims
    if x_bdim is None and w_bdim is None:
        x, x_bdim = ensure_bdim(x, None, info.batch_size), 0

    def real(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dims = (x_bdim, w_bdim, None if bias is None else b_bdim)
        return to_front(*convolution(info, dims, x, weight, bias, *options))

    first = real(x.real, weight.real, None if bias is None else bias.real)
    second = real(x.imag, weight.imag, None)
    both = real(x.real + x.imag, weight.real + weight.imag, None if bias is None else bias.real + bias.imag)
    return settled(torch.complex(first - second, both - first - second), 0)


LARGE = 10_000_000  # products of one member, from which on oneDNN's grouped kernels lose to a call for each member


def _grouped(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """(B N C *), (B O C / groups *), (B O) -> (B N O *): one group a member, or one call.

    Unfolding and one bmm was never the fastest of the three (docs/performance.md).
    """
    *others, groups = options
    size, n = x.shape[:2]
    if x.device.type == "cpu" and n * x.shape[3:].numel() * weight.shape[1:].numel() > LARGE:
        biases = [None] * size if bias is None else bias.unbind()
        members = zip(x.unbind(), weight.unbind(), biases, strict=True)
        return torch.stack([aten.convolution.default(*member, *options) for member in members])
    bias = None if bias is None else bias.reshape(-1)
    wide = x.movedim(0, 1).flatten(1, 2)
    out = aten.convolution.default(wide, weight.flatten(0, 1), bias, *others, groups * size)
    return _members(out, size).movedim(1, 0)


def _members(out: Tensor, size: int) -> Tensor:
    """(N, B O, *) -> (N B O *); no view to autograd, so that the samples may be laid out."""
    return aten._unsafe_view.default(out, [out.shape[0], size, out.shape[1] // size, *out.shape[2:]])


def _shared(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """(B N C *), (O C / groups *), (O) -> (B N O *)."""
    return aten.convolution.default(x.flatten(0, 1), weight, bias, *options).unflatten(0, x.shape[:2])


def _backward(grad: Tensor, x: Tensor, weight: Tensor, needs: Any, *options: Any) -> tuple[Any, Any, Any]:
    """(B N O *), (B N C *), (O C / groups *) -> (B N C *), (B O C / groups *), (B O)."""
    *others, groups = options
    size = x.shape[0]
    grad_x = grad_weight = grad_bias = None
    if needs[0]:
        folded = (grad.flatten(0, 1), x.flatten(0, 1), weight, None, *options, (True, False, False))
        grad_x = aten.convolution_backward.default(*folded)[0].unflatten(0, x.shape[:2])
    if needs[1]:
        wide = [t.movedim(0, 1).flatten(1, 2) for t in (grad, x)]
        shape = weight.new_empty(1).expand(size * weight.shape[0], *weight.shape[1:])  # the kernel asks no more of it
        wide_options = (*others, groups * size, (False, True, False))
        grad_weight = aten.convolution_backward.default(*wide, shape, None, *wide_options)[1].unflatten(0, (size, -1))
    if needs[2]:
        grad_bias = grad.sum([1, *range(3, grad.ndim)])
    return grad_x, grad_weight, grad_bias


CONVOLUTION = Product(_shared, _backward, _grouped)


def _public(name: str, spatial: int, transposed: bool) -> Any:
    """Make the rule of ``conv1d`` and its like: with or without N, and one number for all spatial dims."""
    defaults = (1, 0, 0, 1, 1) if transposed else (1, 0, 1, 1)

    def spread(value: Any) -> list[int]:
        value = list(value) if isinstance(value, list | tuple) else [value]
        return value * spatial if len(value) == 1 else value

    ask = asker(getattr(torch, name))

    def public(info: Any, in_dims: Any, x: Any, weight: Any, bias: Any = None, *given: Any) -> Any:
        """(N, C, *) or (C, *), (O, C / groups, *), (O) -> (N, O, *) or (O, *)."""
        options: tuple[Any, ...] = (*given, *defaults[len(given) :])
        stride, padding, *rest = options
        output_padding, groups, dilation = tuple(rest) if transposed else (0, rest[1], rest[0])
        x_bdim, w_bdim, b_bdim = (*in_dims, None)[:3]
        if bias is not None and bias.dtype != x.dtype:
            ask(info, in_dims, (x, weight, bias, *given), {})
        rank = x.ndim - (x_bdim is not None)
        if rank not in (spatial + 1, spatial + 2):
            raise RuntimeError(
                f"Expected {spatial + 1}D (unbatched) or {spatial + 2}D (batched) input to {name}, but got input of "
                f"size: {[n for d, n in enumerate(x.shape) if d != x_bdim]}"
            )
        single = rank == spatial + 1
        if single:
            x, x_bdim = (x.unsqueeze(0), None) if x_bdim is None else (to_front(x, x_bdim).unsqueeze(1), 0)
        spatial_options = (spread(stride), spread(padding), spread(dilation), transposed, spread(output_padding))
        run = _complex if x.is_complex() and weight.is_complex() else convolution
        out, bdim = run(info, (x_bdim, w_bdim, b_bdim), x, weight, bias, *spatial_options, groups)
        return (to_front(out, bdim).squeeze(1), 0) if single else (out, bdim)

    return public


for _n in (1, 2, 3):
    pack.add(getattr(aten, f"conv{_n}d").default, _public(f"conv{_n}d", _n, transposed=False))
    _packet = getattr(aten, f"conv_transpose{_n}d")
    pack.add(_packet.default if _n == 1 else _packet.input, _public(f"conv_transpose{_n}d", _n, transposed=True))
