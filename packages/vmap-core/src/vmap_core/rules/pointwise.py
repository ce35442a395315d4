"""Elementwise operators. Those with PyTorch's pointwise tag need no line here: see `_families.default_rule`."""

from ..rulekit.families import pointwise
from ..rulekit.rule import RulePack
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
