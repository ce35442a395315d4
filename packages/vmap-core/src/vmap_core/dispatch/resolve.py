"""Who serves a call."""

from __future__ import annotations

from typing import Any

from ..levels.level import Level
from ..rulekit.families import default_rule
from ..rulekit.torch_library import registered_rule
from ..torch_compat.operators import OpOverload
from . import inplace
from .binding import Arrange
from .plan import Plan
from .rule_plan import from_rule


def for_overload(
    level: Level, func: Any, op: OpOverload, arrange: Arrange | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan | None:
    """Return the plan for a call that means ``op``, or None if only the dispatcher knows how to run it."""
    if op._schema.is_mutable:
        return inplace.plan(level, func, op, arrange)
    rule = level.table.rule(op) or default_rule(op) or registered_rule(op)
    return None if rule is None else from_rule(rule, func, op, arrange, args, kwargs)
