"""Plans of calls that go through PyTorch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedError, user_location
from ..levels.args import any_batched
from ..levels.level import Level
from ..rulekit.loop import loop_rule
from ..rulekit.rule import Rule
from ..torch_compat.operators import OpOverload, OpOverloadPacket, decomposition_of, is_leaf, is_random
from .binding import Arrange
from .general import unbatched_plan
from .lowering import run_lowered
from .plan import Plan
from .properties import inherited_property_plan
from .rule_plan import from_rule


def plan(func: Any, op: OpOverload | None, arrange: Arrange | None) -> Plan:
    """Make the plan for a call without a rule: a decomposition, the loop for a kernel, or the dispatcher."""
    if getattr(func, "__name__", "") in ("__get__", "__set__"):
        return inherited_property_plan(func)
    if op is not None and is_leaf(op):
        return from_rule(_leaf_rule(op), func, op, arrange)
    run_unbatched = unbatched_plan(func, op)
    draws = is_random(func)
    run = native(func, op)
    mutates = op is not None and op._schema.is_mutable

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if draws or any_batched(level, args, kwargs):
            return run_lowered(level, run, args, kwargs, mutates=mutates)
        return run_unbatched(level, args, kwargs)

    plan.how = "its parts, through the dispatcher"  # type: ignore[attr-defined]
    return plan


def _leaf_rule(op: OpOverload) -> Rule:
    """Return how an operator with a kernel of its own and no rule runs: PyTorch's decomposition, else the loop."""
    views = any(r.alias_info is not None for r in op._schema.returns)
    body = None if views or op._schema.is_mutable else decomposition_of(op)  # prims have no rules
    if body is None:
        return Rule(loop_rule(op), "physical", "core (loop)")

    loop = from_rule(Rule(loop_rule(op), "physical", "core (loop)"), op, op, None)

    def decompose(level: Level, *args: Any, **kwargs: Any) -> Any:
        if not any_batched(level, args, kwargs):
            return unbatched_plan(op, op)(level, args, kwargs)
        with level.pushed():
            out = body(*args, **kwargs)
        return out if out is not NotImplemented else loop(level, args, kwargs)

    return Rule(decompose, "logical", "core (decomposition)")


def native(func: Any, op: OpOverload | None) -> Callable[..., Any]:
    """Return what runs a composite on lowered tensors, down to the operations it is made of."""
    if not isinstance(func, OpOverload | OpOverloadPacket) or op is None:
        return func

    def decompose(*args: Any, **kwargs: Any) -> Any:
        out = op.decompose(*args, **kwargs)
        if out is NotImplemented:
            raise UnsupportedError(f"vmap: {op} has no batching rule and no parts, at {user_location()}")
        return out

    return decompose
