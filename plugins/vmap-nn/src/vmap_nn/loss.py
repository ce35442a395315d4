"""Losses whose kernels take whole tensors: elementwise formulas, then the reduction."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vmap_core.extend import RulePack, ensure_bdim, every_sample, pad_rank
from vmap_core.extend import named_aten as aten

pack = RulePack("nn.loss")
REDUCTIONS = ("none", "mean", "sum")  # by ATen's codes


def reduce(loss: Tensor, reduction: int) -> Tensor:
    """Apply ATen's reduction code: 0 none, 1 mean, 2 sum."""
    return loss.mean() if reduction == 1 else loss.sum() if reduction == 2 else loss


@pack.rule(aten.binary_cross_entropy.default)
def binary_cross_entropy(info, in_dims, x, target, weight=None, reduction=1):
    """(*), (*), (*) -> (*) or (); the kernel looks whether all of x is between 0 and 1, and knows the slope at these."""
    x_bdim, t_bdim, w_bdim = (*in_dims, None)[:3]
    x, target = ensure_bdim(x, x_bdim, info.batch_size), ensure_bdim(target, t_bdim, info.batch_size)
    loss = aten.binary_cross_entropy.default(x, target, pad_rank(weight, w_bdim, x.ndim - 1), 0)
    if not reduction:
        return loss, 0
    rows = loss.flatten(1) if loss.ndim > 1 else loss.unsqueeze(1)
    return (rows.mean(1) if reduction == 1 else rows.sum(1)), 0


@pack.composite(aten.huber_loss.default)
def huber_loss(x, target, reduction=1, delta=1.0):
    """(*), (*) -> (*) or (), in the dtype of the first."""
    d = x - target.to(torch.promote_types(x.dtype, target.dtype))
    far = d.abs()  # it has no part in the square: its slope at zero would make the second derivative there zero
    return reduce(torch.where(far < delta, 0.5 * d * d, delta * (far - 0.5 * delta)).to(x.dtype), reduction)


@pack.composite(aten.soft_margin_loss.default)
def soft_margin_loss(x, target, reduction=1):
    """(*), (*) -> (*) or (), in the dtype of the first."""
    if target.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "The function 'soft_margin_loss' is not differentiable with respect to argument 'target'. This input cannot have "
            "requires_grad True."
        )
    return reduce((-x).mul_(target).exp_().log1p(), reduction)  # in place as the kernel: integers are refused


@pack.composite(aten.glu.default)
def glu(x, dim=-1):
    """(*, 2n, *) -> (*, n, *): one half gated by the other."""
    if x.shape[dim] % 2:
        raise RuntimeError(f"Halving dimension must be even, but dimension {dim} is size {x.shape[dim]}")
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


@pack.rule(aten.multilabel_margin_loss_forward.default)
def multilabel_margin_loss(info, in_dims, x, target, reduction):
    """(C) or (N, C), classes of the same shape, ended by -1 -> () or (N), and which classes are targets."""
    x, target = (ensure_bdim(t, d, info.batch_size) for t, d in zip((x, target), in_dims, strict=False))
    if x.ndim > 3 or target.shape != x.shape:
        raise RuntimeError(f"inconsistent target size: {list(target.shape[1:])} for input of size: {list(x.shape[1:])}")
    lead, classes = (x.shape[:-1], x.shape[-1]) if x.ndim > 1 else (x.shape, 1)  # a scalar is one class
    rows = (t.reshape(lead.numel(), classes) for t in (x, target))
    loss, is_target = aten.multilabel_margin_loss_forward.default(*rows, 0)
    loss = loss.reshape(lead)
    if reduction and loss.ndim == 2:
        loss = loss.mean(1) if reduction == 1 else loss.sum(1)
    return (loss, is_target.reshape(x.shape)), 0


@pack.composite(functional.gaussian_nll_loss)
def gaussian_nll_loss(input, target, var, full=False, eps=1e-6, reduction="mean"):
    """(*), (*), (*) or one dim less or a number -> (*) or (): PyTorch's, but negative variances of any sample are found."""
    negative = var < 0 if isinstance(var, float) else bool((every_sample(var) < 0).any())
    if negative:
        raise ValueError("var has negative entry/entries")
    if isinstance(var, float):
        var = var * torch.ones_like(input)
    if var.shape != input.shape:
        if input.shape[:-1] == var.shape:
            var = var.unsqueeze(-1)
        elif input.ndim != var.ndim or sum(v for i, v in zip(input.shape, var.shape, strict=True) if i != v) != 1:
            raise ValueError("var is of incorrect size")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not valid")
    var = var.clone()
    with torch.no_grad():  # where it is clamped the gradient goes through
        var.clamp_(min=eps)
    loss = 0.5 * (var.log() + (input - target) ** 2 / var)
    return reduce(loss + 0.5 * math.log(2 * math.pi) if full else loss, REDUCTIONS.index(reduction))


pack.ask(aten.binary_cross_entropy.default, aten.huber_loss.default, aten.glu.default)
