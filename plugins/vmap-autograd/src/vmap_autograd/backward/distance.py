"""Gradients of distances."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Level, RulePack, ensure_bdim, pad_rank
from vmap_core.extend import named_aten as aten

pack = RulePack("autograd.backward.distance")


@pack.rule(aten._cdist_backward.default)
def cdist_backward(
    info: Level, in_dims: Any, grad: Any, x: Any, y: Any, p: float, distances: Any
) -> tuple[Tensor, int]:
    """(*, n, m), (*, n, d), (*, m, d), (*, n, m) -> (*, n, d)."""
    dims = (*in_dims[:3], in_dims[4] if len(in_dims) > 4 else None)
    tensors = [ensure_bdim(t, d, info.batch_size) for t, d in zip((grad, x, y, distances), dims, strict=True)]
    rank = max(t.ndim for t in tensors) - 1
    grad, x, y, distances = (pad_rank(t, 0, rank) for t in tensors)
    lead = torch.broadcast_shapes(*(t.shape[:-2] for t in (grad, x, y, distances)))
    grad, x, y, distances = (t.expand(*lead, *t.shape[-2:]).contiguous() for t in (grad, x, y, distances))
    return aten._cdist_backward.default(grad, x, y, p, distances), 0


@pack.rule(aten._pdist_backward.default)
def pdist_backward(info: Level, in_dims: Any, grad: Any, x: Any, p: float, distances: Any) -> tuple[Tensor, int]:
    """(n (n - 1) / 2), (n, d), (n (n - 1) / 2) -> (n, d). The kernel has no batch dims."""
    dims = (in_dims[0], in_dims[1], in_dims[3] if len(in_dims) > 3 else None)
    grad, x, distances = (ensure_bdim(t, d, info.batch_size) for t, d in zip((grad, x, distances), dims, strict=True))
    first, second = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    difference = x[:, first] - x[:, second]
    part = grad.unsqueeze(-1) * _slope(difference, distances.unsqueeze(-1), p)
    return torch.zeros_like(x).index_add(1, first, part).index_add(1, second, -part), 0


def _slope(difference: Tensor, distance: Tensor, p: float) -> Tensor:
    """Return the derivative of a p-distance by a difference."""
    if p == 0:
        return torch.zeros_like(difference)
    if p == 1:
        return difference.sign()
    if math.isinf(p):
        return difference.sign() * (difference.abs() == distance)
    if p < 1:
        slope = difference.sign() * difference.abs().pow(p - 1) * distance.pow(1 - p)
        return torch.where((distance == 0) | (difference == 0), 0, slope)
    slope = difference * difference.abs().pow(p - 2) / distance.pow(p - 1)
    return torch.where((distance == 0) | ((difference == 0) & (p < 2)), 0, slope)
