"""Losses over classes, `cross_entropy` and `nll_loss`: the batch is folded into N, and only the mean is per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from vmap_core.extend import RulePack, call_inherent, ensure_bdim, find
from vmap_core.extend import named_aten as aten

from ._torch import dual_level

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
    smoothing: float | None = None,
) -> tuple[Tensor, int]:
    x_bdim, t_bdim, w_bdim = (*in_dims, None, None)[:3]
    x, target = ensure_bdim(x, x_bdim, info.batch_size), ensure_bdim(target, t_bdim, info.batch_size)
    classes = target.shape != x.shape  # else probabilities
    options = (ignore_index,) if smoothing is None else (ignore_index, smoothing)
    if w_bdim is None and not _differentiable(weight):
        if x.ndim == 2:  # one prediction a sample: the batch is N
            loss = op(x, target, weight, 0, *options)
        else:
            loss = op(x.flatten(0, 1), target.flatten(0, 1), weight, 0, *options).unflatten(0, x.shape[:2])
        return _reduce(loss, x, target, weight, reduction, classes, ignore_index), 0
    weight = ensure_bdim(weight, w_bdim, info.batch_size)
    dim = 1 if x.ndim == 2 else 2
    log_p = x if op is aten.nll_loss_nd.default else x.log_softmax(dim)
    share = (smoothing or 0.0) / x.shape[dim]
    if not classes:
        loss = (_scaled(log_p, weight, dim) * (target * (1 - (smoothing or 0.0)) + share)).sum(dim)
        return _reduce(loss, x, target, weight, reduction, classes, ignore_index), 0
    counted = target != ignore_index
    fixed = _constant(weight)  # PyTorch has no derivative by the weights here
    own = _scaled(log_p, fixed, dim).gather(dim, torch.where(counted, target, 0).unsqueeze(dim)).squeeze(dim)
    loss = _reduce(torch.where(counted, own, 0), x, target, fixed, reduction, classes, ignore_index)
    if smoothing:  # and here it has one
        rest = torch.where(counted, _scaled(log_p, weight, dim).sum(dim), 0)
        rest = _reduce(rest, x, target, weight, reduction, classes, ignore_index)
        loss = (1 - smoothing) * loss + share * rest
    return loss, 0


def _scaled(log_p: Tensor, weight: Tensor, dim: int) -> Tensor:
    """(B *), with weights (B, C) for every sample: minus their product."""
    return -log_p * weight.reshape(weight.shape[0], *(1,) * (dim - 1), weight.shape[1], *(1,) * (log_p.ndim - dim - 1))


def _reduce(
    loss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, classes: bool, ignore_index: int
) -> Tensor:
    """(B) or (B, N, *) -> (B), or as it is; the mean divides by the weights (C) or (B, C) of what is counted."""
    if reduction == 0:
        return loss
    total = loss.flatten(1).sum(1) if loss.ndim > 1 else loss
    if reduction == 2:
        return total
    if not classes:
        return total / (x[0].numel() // x.shape[1 if x.ndim == 2 else 2] if x.shape[0] else 1)
    counted = target != ignore_index
    if weight is not None:
        index = torch.where(counted, target, 0)
        flat = index.flatten(1) if index.ndim > 1 else index.unsqueeze(1)
        own = weight.gather(1, flat).reshape(target.shape) if weight.ndim == 2 else weight[index]
        counted = torch.where(counted, own, 0)
    return total / (counted.flatten(1).sum(1) if counted.ndim > 1 else counted)


def _differentiable(weight: Tensor | None) -> bool:
    return weight is not None and (weight.requires_grad or _constant(weight) is not weight)


def _constant(weight: Tensor) -> Tensor:
    """Return a tensor without graph and tangent."""
    if dual_level() >= 0:
        weight = forward_ad.unpack_dual(weight).primal
    return weight.detach() if weight.requires_grad else weight


@pack.logical(find("torch.nn.functional.linear_cross_entropy"))
def linear_cross_entropy(info, *args, **kwargs):
    """(N, F), (C, F), (N) -> () or (N). Its chunks (``options``) save memory for one sample; products serve them all."""
    return call_inherent(info, functional.linear_cross_entropy, args, {**kwargs, "options": None})


pack.ask(aten.cross_entropy_loss.default, aten.nll_loss_nd.default)
