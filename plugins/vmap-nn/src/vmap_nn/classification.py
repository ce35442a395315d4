"""Losses over classes, `cross_entropy` and `nll_loss`: the batch is folded into N, and only the mean is per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import RulePack, ensure_bdim, to_front

aten = torch.ops.aten
pack = RulePack("nn.classification")


@pack.rule(aten.cross_entropy_loss.default)
def cross_entropy_loss(
    info, in_dims, x, target, weight=None, reduction=1, ignore_index=-100, label_smoothing=0.0
):  # fmt: skip
    """(C) or (N, C, *), classes () or (N, *) or probabilities like x, (C) -> () or (N, *)."""
    return _class_loss(
        info, in_dims, aten.cross_entropy_loss.default, x, target, weight, reduction, ignore_index, label_smoothing
    )


@pack.rule(aten.nll_loss_nd.default, aten.nll_loss.default, aten.nll_loss2d.default)
def nll_loss(info, in_dims, x, target, weight=None, reduction=1, ignore_index=-100):
    """(C) or (N, C, *), classes () or (N, *), (C) -> () or (N, *)."""
    return _class_loss(info, in_dims, aten.nll_loss_nd.default, x, target, weight, reduction, ignore_index)


def _class_loss(
    info: Any,
    in_dims: Any,
    op: Any,
    x: Any,
    target: Any,
    weight: Any,
    reduction: int,
    ignore_index: int,
    *smoothing: float,
) -> tuple[Tensor, int]:
    x_bdim, t_bdim, w_bdim = (*in_dims, None, None)[:3]
    x, target = ensure_bdim(x, x_bdim, info.batch_size), ensure_bdim(target, t_bdim, info.batch_size)
    classes = target.shape != x.shape  # else probabilities
    if w_bdim is not None:
        weight = to_front(weight, w_bdim)
        loss = _weighted(op, x, target, weight, classes, ignore_index, *smoothing)
    elif x.ndim == 2:  # one prediction a sample: the batch is N
        loss = op(x, target, weight, 0, ignore_index, *smoothing)
    else:
        loss = op(x.flatten(0, 1), target.flatten(0, 1), weight, 0, ignore_index, *smoothing).unflatten(0, x.shape[:2])
    if reduction == 0:
        return loss, 0
    total = loss.flatten(1).sum(1) if loss.ndim > 1 else loss
    if reduction == 2:
        return total, 0
    return total / _weights(x, target, weight, w_bdim is not None, classes, ignore_index), 0


def _weights(x: Tensor, target: Tensor, weight: Tensor | None, batched: bool, classes: bool, ignore_index: int) -> Any:
    """Return what the mean of each sample's losses divides by."""
    if not classes:
        return x[0].numel() // x.shape[1 if x.ndim == 2 else 2] if x.shape[0] else 1
    counted = target != ignore_index
    if weight is not None:
        index = torch.where(counted, target, 0)
        flat = index.flatten(1) if index.ndim > 1 else index.unsqueeze(1)
        own = weight.gather(1, flat).reshape(target.shape) if batched else weight[index]
        counted = torch.where(counted, own, 0)
    return counted.flatten(1).sum(1) if counted.ndim > 1 else counted


def _weighted(
    op: Any, x: Tensor, target: Tensor, weight: Tensor, classes: bool, ignore_index: int, smoothing: float = 0.0
) -> Tensor:
    """The loss with other weights (B, C) for every sample, in elementary operations."""
    dim = 1 if x.ndim == 2 else 2
    log_p = x if op is aten.nll_loss_nd.default else x.log_softmax(dim)
    weighted = -log_p * weight.reshape(weight.shape[0], *(1,) * (dim - 1), weight.shape[1], *(1,) * (x.ndim - dim - 1))
    share = smoothing / x.shape[dim]
    if not classes:
        return (weighted * (target * (1 - smoothing) + share)).sum(dim)
    counted = target != ignore_index
    own = weighted.gather(dim, torch.where(counted, target, 0).unsqueeze(dim)).squeeze(dim)
    loss = (1 - smoothing) * own + share * weighted.sum(dim) if smoothing else own
    return torch.where(counted, loss, 0)
