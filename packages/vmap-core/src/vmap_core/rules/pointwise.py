"""Elementwise operators. Those with PyTorch's pointwise tag need no line here: see `_families.default_rule`."""

import torch

from ..rulekit.families import pointwise
from ..rulekit.rule import RulePack
from ..torch_compat.operators import named_aten as aten

pack = RulePack("core.pointwise")

pack.family(
    pointwise,
    aten.complex.default,
    aten.polar.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.true_divide.Scalar,
    aten.true_divide.Tensor,
    aten.where.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
)


@pack.composite(aten.float_power.Tensor_Tensor)
def float_power(base, exponent):
    """(*), (*) -> (*), in double precision: no operand is rounded to the other's dtype first."""
    dtype = torch.complex128 if base.is_complex() or exponent.is_complex() else torch.float64
    return torch.pow(base.to(dtype), exponent.to(dtype))
