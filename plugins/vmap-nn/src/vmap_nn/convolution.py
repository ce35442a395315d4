"""Convolutions: a mapped input is folded into N; mapped weights make one grouped convolution."""

from __future__ import annotations

import torch

from vmap_core.extend import RulePack, ensure_bdim, to_front

aten = torch.ops.aten
pack = RulePack("nn.convolution")


@pack.rule(aten.convolution.default)
def convolution(info, in_dims, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """(N, C, *), (O, C / groups, *), (O) -> (N, O, *)."""
    x_bdim, w_bdim, b_bdim = in_dims[:3]
    options = (stride, padding, dilation, transposed, output_padding)
    if b_bdim is not None and w_bdim is None:
        bias = to_front(bias, b_bdim)
        spread = bias.reshape(bias.shape[0], 1, bias.shape[1], *(1,) * (weight.ndim - 2))
        if x_bdim is None:
            return aten.convolution.default(x, weight, None, *options, groups) + spread, 0
        out, bdim = convolution(info, (x_bdim, None, None), x, weight, None, *options, groups)
        return to_front(out, bdim) + spread, 0
    if w_bdim is None:
        x = to_front(x, x_bdim)
        out = aten.convolution.default(x.flatten(0, 1), weight, bias, *options, groups)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0
    weight = to_front(weight, w_bdim)
    size = info.batch_size
    if bias is not None:
        bias = ensure_bdim(bias, b_bdim, size).reshape(-1) if size else bias
    if not size:
        one = aten.convolution.default(
            x if x_bdim is None else x.new_zeros([n for d, n in enumerate(x.shape) if d != x_bdim]),
            weight.new_zeros(weight.shape[1:]), None, *options, groups,
        )  # fmt: skip
        return one.new_empty(0, *one.shape), 0
    if x_bdim is None and groups == 1 and not transposed:  # one image, all members' filters
        out = aten.convolution.default(x, weight.flatten(0, 1), bias, *options, 1)
        return out.reshape(out.shape[0], size, -1, *out.shape[2:]), 1
    x = ensure_bdim(x, x_bdim, size).movedim(0, 1)  # (N B C *)
    out = aten.convolution.default(x.flatten(1, 2), weight.flatten(0, 1), bias, *options, groups * size)
    return out.reshape(out.shape[0], size, -1, *out.shape[2:]), 1
