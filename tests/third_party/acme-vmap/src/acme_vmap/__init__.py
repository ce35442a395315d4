"""An operator of one's own, and the rule that maps it: all a third party has to write."""

import torch
from torch import Tensor

from vmap_core.extend import RulePack, ensure_bdim, hookimpl

pack = RulePack("acme")


@torch.library.custom_op("acme::clip_rows", mutates_args=())
def clip_rows(x: Tensor, max_norm: Tensor) -> Tensor:
    """(n, d), () -> (n, d): rows longer than max_norm are shortened to it."""
    return x * torch.clamp(max_norm / x.norm(dim=1, keepdim=True), max=1.0)


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


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    return [pack]
