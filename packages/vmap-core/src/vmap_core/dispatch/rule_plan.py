"""Plans: how calls of one signature run, once their rule is known."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..levels.args import has_tensor
from ..levels.tensor import BatchedTensor
from ..rulekit.rule import Rule
from ..torch_compat.operators import RANDOM, OpOverload
from . import shortcuts
from .binding import Arrange
from .general import general_plan
from .plan import Plan


def from_rule(
    rule: Rule,
    func: Any,
    op: OpOverload | None,
    arrange: Arrange | None,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Plan:
    """Make the plan that runs a rule.

    Args:
        rule: the rule.
        func: what was called.
        op: the overload it means, if it means one.
        arrange: brings the arguments into the schema's order.
        args: arguments of the first such call; their types hold for all.
        kwargs: its keyword arguments.
    """
    plan = _choose(rule, func, op, arrange, [type(a) for a in args], args, kwargs or {})
    plan.rule = rule  # type: ignore[attr-defined]  # for those who ask who served a call
    return plan


def _choose(
    rule: Rule, func: Any, op: OpOverload | None, arrange: Arrange | None, types: list[type], args: Any, kwargs: Any
) -> Plan:
    """Return a short cut where the types allow one, else the general plan."""
    general = general_plan(rule, func, op, arrange)
    if op is not None and ([str(r.type) for r in op._schema.returns] != ["Tensor"] or RANDOM in op.tags):
        return general
    alone = types[:1] == [BatchedTensor] and not has_tensor((*args[1:], *kwargs.values()))
    asked = getattr(rule.function, "by_shape", None)
    if alone and asked is not None:
        return shortcuts.by_shape_plan(asked, general, arrange)
    if rule.kind != "physical" or op is None:
        return general
    if arrange is not None:
        return shortcuts.arranged_plan(rule.function, general, arrange) if alone and _plain(rule) else general
    emit = getattr(rule.function, "emit", None)
    if emit is not None:
        return shortcuts.pointwise_plan(emit, general, types)
    if types[:1] == [list] and set(map(type, args[0])) == {BatchedTensor} and not has_tensor(args[1:]) and not kwargs:
        return shortcuts.list_plan(rule.function, general, (None,) * (len(args) - 1))
    if alone and not kwargs and _plain(rule):
        return shortcuts.single_plan(rule.function, general, (None,) * (len(args) - 1))
    if len(args) == 2 and not kwargs and all(isinstance(a, Tensor) for a in args) and _plain(rule):
        return shortcuts.pair_plan(rule.function, general)
    return general


def _plain(rule: Rule) -> bool:
    return not getattr(rule.function, "may_return_self", False)
