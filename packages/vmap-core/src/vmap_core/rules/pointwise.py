"""Elementwise operators. Those with PyTorch's pointwise tag need no line here: see `_families.default_rule`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..rulekit.families import pointwise
from ..rulekit.rule import Rule, RulePack
from ..torch_compat.operators import named_aten as aten

pack = RulePack("core.pointwise")

pack.family(
    pointwise,
    aten.complex.default,
    aten.floor_divide.Scalar,
    aten.floor_divide.default,
    aten.polar.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.true_divide.Scalar,
    aten.true_divide.Tensor,
    aten.where.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
)


def _clamp(op: Any) -> Rule:
    """Make the rule of clamp: PyTorch's backward of a tensor with fewer dims than its bounds fails, so it has as many."""
    rule = pointwise(op)

    def clamp(info: Any, in_dims: Any, x: Any, *bounds: Any, **kwargs: Any) -> Any:
        if in_dims[0] is None:
            x, in_dims = x.expand(info.batch_size, *x.shape), (0, *in_dims[1:])
        return rule.function(info, in_dims, x, *bounds, **kwargs)

    return replace(rule, function=clamp)


pack.family(_clamp, aten.clamp.Tensor)


@pack.composite(aten.float_power.Tensor_Tensor)
def float_power(base, exponent):
    """(*), (*) -> (*), in double precision: no operand is rounded to the other's dtype first."""
    dtype = torch.complex128 if base.is_complex() or exponent.is_complex() else torch.float64
    return torch.pow(base.to(dtype), exponent.to(dtype))
