"""Gradients of embedding_bag."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Level, RulePack, ensure_bdim, loop, to_front
from vmap_core.extend import named_aten as aten

pack = RulePack("autograd.backward.embedding")


@pack.rule(aten._embedding_bag_backward.default)
def embedding_bag_backward(
    info: Level, in_dims: Any, grad: Any, indices: Any, offsets: Any, offset2bag: Any, bag_size: Any, maximum_indices: Any,
    num_weights: int, scale_grad_by_freq: bool, mode: int, sparse: bool, weights: Any = None, padding_idx: int = -1,
) -> tuple[Tensor, int]:  # fmt: skip
    """(bags, d), (n), (bags), (n), (bags), (bags, d) -> (v, d): the batch is so many more columns of the gradient."""
    rest = (indices, offsets, offset2bag, bag_size, maximum_indices, num_weights, scale_grad_by_freq, mode, sparse)
    if any(d is not None for d in in_dims[1:]):
        given = [
            to_front(t, d).contiguous()
            if isinstance(t, Tensor) and isinstance(d, int)
            else t  # the kernel asks it of a row
            for t, d in zip_longest((grad, *rest, weights, padding_idx), in_dims)
        ]
        dims = tuple(0 if isinstance(d, int) else d for d in in_dims)
        return loop(info, aten._embedding_bag_backward.default, dims, *given)
    grad = ensure_bdim(grad, in_dims[0], info.batch_size)
    size, bags, width = grad.shape
    columns = grad.movedim(0, 1).reshape(bags, size * width)
    if maximum_indices.ndim == 2:
        maximum_indices = maximum_indices.repeat(1, size)
    rest = (indices, offsets, offset2bag, bag_size, maximum_indices, *rest[5:])
    out = aten._embedding_bag_backward.default(columns, *rest, weights, padding_idx)
    return out.reshape(num_weights, size, width), 1


@pack.rule(aten._embedding_bag_per_sample_weights_backward.default)
def per_sample_weights_backward(
    info: Level, in_dims: Any, grad: Any, weight: Any, indices: Any, offsets: Any, offset2bag: Any, mode: int,
    padding_idx: int = -1,
) -> tuple[Tensor, int]:  # fmt: skip
    """(bags, d), (v, d), (n), (bags), (n) -> (n)."""
    dims = (*in_dims, *(None,) * 5)[:5]
    given = [
        ensure_bdim(t, d, info.batch_size)
        for t, d in zip((grad, weight, indices, offsets, offset2bag), dims, strict=True)
    ]
    grad, weight, indices, offsets, bags = given
    if bags.shape[1] != indices.shape[1]:  # left out: the bag of an index is that of the last offset up to it
        places = torch.arange(indices.shape[1], device=grad.device).expand(indices.shape).contiguous()
        bags = torch.searchsorted(offsets.contiguous(), places, right=True) - 1
    sample = torch.arange(grad.shape[0], device=grad.device).unsqueeze(1)
    out = (grad[sample, bags] * weight[sample, indices]).sum(-1)
    return torch.where(indices == padding_idx, 0, out), 0
