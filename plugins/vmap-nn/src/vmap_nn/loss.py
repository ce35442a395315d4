"""Losses whose kernels take whole tensors: elementwise formulas, then the reduction."""

from __future__ import annotations

import torch
from torch import Tensor

from vmap_core.extend import RulePack

aten = torch.ops.aten
pack = RulePack("nn.loss")


def reduce(loss: Tensor, reduction: int) -> Tensor:
    """Apply ATen's reduction code: 0 none, 1 mean, 2 sum."""
    return loss.mean() if reduction == 1 else loss.sum() if reduction == 2 else loss


@pack.composite(aten.huber_loss.default)
def huber_loss(x, target, reduction=1, delta=1.0):
    """(*), (*) -> (*) or ()."""
    z = (x - target).abs()
    return reduce(torch.where(z <= delta, 0.5 * z * z, delta * (z - 0.5 * delta)), reduction)


@pack.composite(aten.glu.default)
def glu(x, dim=-1):
    """(*, 2n, *) -> (*, n, *): one half gated by the other."""
    if x.shape[dim] % 2:
        raise RuntimeError(f"Halving dimension must be even, but dimension {dim} is size {x.shape[dim]}")
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()
