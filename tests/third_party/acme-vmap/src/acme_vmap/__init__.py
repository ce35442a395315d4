"""Operators of one's own, and the rules that map them: all a third party has to write."""

import torch
from torch import Tensor

from vmap_core.extend import RulePack, batch_dims, ensure_bdim, expand_dims, hookimpl, pointwise

__all__ = ["clip_rows", "jitter", "row_extremes", "shrink", "shrink_"]

pack = RulePack("acme")


# A rule written by hand, for an operator that PyTorch can differentiate.


@torch.library.custom_op("acme::clip_rows", mutates_args=())
def clip_rows(x: Tensor, max_norm: Tensor) -> Tensor:
    """(n, d), () -> (n, d): rows longer than max_norm are shortened to it."""
    return x * torch.clamp(max_norm / x.norm(dim=1, keepdim=True), max=1.0)


def _backward(ctx, grad):
    x, max_norm = ctx.saved_tensors
    with torch.enable_grad():
        x, max_norm = x.detach().requires_grad_(), max_norm.detach().requires_grad_()
        out = x * torch.clamp(max_norm / x.norm(dim=1, keepdim=True), max=1.0)
        return torch.autograd.grad(out, (x, max_norm), grad)


clip_rows.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


@pack.rule(clip_rows)
def clip_rows_rule(info, in_dims, x, max_norm):
    """(n, d), () -> (n, d): rows are independent, so the samples join the rows."""
    x_bdim, norm_bdim = in_dims
    x = ensure_bdim(x, x_bdim, info.batch_size)
    if norm_bdim is None:
        return clip_rows(x.flatten(0, 1), max_norm).reshape(x.shape), 0
    # one norm for each sample: scale the samples so that theirs is one
    scale = ensure_bdim(max_norm, norm_bdim, info.batch_size)[:, None, None]
    out = clip_rows((x / scale).flatten(0, 1), torch.ones((), dtype=x.dtype))
    return out.reshape(x.shape) * scale, 0


# Rules that a family gives, one line each: elementwise, writing, of several outputs, random.


@torch.library.custom_op("acme::shrink", mutates_args=())
def shrink(x: Tensor, by: Tensor) -> Tensor:
    """(*), (*) -> (*): towards zero, but not past it."""
    return x.sign() * (x.abs() - by).clamp(min=0)


@torch.library.custom_op("acme::shrink_", mutates_args=("x",))
def shrink_(x: Tensor, by: Tensor) -> None:
    """(*), (*): the same, in place."""
    x.copy_(x.sign() * (x.abs() - by).clamp(min=0))


@torch.library.custom_op("acme::row_extremes", mutates_args=())
def row_extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) -> (n), (n): the least and the greatest of each row."""
    return x.amin(1), x.amax(1)


@torch.library.custom_op("acme::jitter", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def jitter(x: Tensor) -> Tensor:
    """(*) -> (*): with noise between 0 and 1."""
    return x + torch.rand(x.shape)


pack.family(pointwise, shrink, shrink_)
pack.family(batch_dims(1), row_extremes)
pack.family(expand_dims, jitter)


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    return [pack]
