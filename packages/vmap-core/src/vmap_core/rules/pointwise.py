"""Elementwise operators. Those with PyTorch's pointwise tag need no line here: see `_families.default_rule`."""

import torch

from .._families import pointwise
from .._registry import RulePack

aten = torch.ops.aten
pack = RulePack("core.pointwise")

pack.family(
    pointwise,
    aten.zeros_like.default,
    aten.ones_like.default,
)
