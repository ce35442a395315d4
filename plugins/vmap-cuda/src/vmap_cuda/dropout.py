"""Dropout kernels that return their mask. (``native_dropout`` runs by the core's rule, on every device.)"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Level, RulePack, ensure_bdim, expand_dims
from vmap_core.extend import named_aten as aten

pack = RulePack("cuda.dropout")


@pack.rule(aten._fused_dropout.default)
def fused_dropout(info: Level, in_dims: Any, x: Tensor, p: float, generator: Any = None) -> tuple[Any, Any]:
    """(*) -> (*), (*): the result and the mask. An element is kept with probability ``p``."""
    info.require_randomness(aten._fused_dropout.default)
    bdim = in_dims[0]
    if info.randomness == "different":
        return aten._fused_dropout.default(ensure_bdim(x, bdim, info.batch_size), p, generator), 0
    if bdim is None:
        return aten._fused_dropout.default(x, p, generator), None
    shape = [n for d, n in enumerate(x.shape) if d != bdim]
    mask = aten._fused_dropout.default(x.new_ones(shape), p, generator)[1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # as the kernel computes
    out = wide * mask.unsqueeze(bdim) * (1 / p if p else math.inf)
    return (out.to(x.dtype), mask), (bdim, None)


pack.family(expand_dims, aten._masked_scale.default)  # (*), (*) -> (*)
