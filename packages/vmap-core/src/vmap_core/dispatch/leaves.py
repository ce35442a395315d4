"""Rules of last resort, for operators with a kernel of their own: PyTorch's decomposition, else the loop."""

from __future__ import annotations

from typing import Any

from ..levels.args import any_batched
from ..levels.level import Level
from ..rulekit.asking import asking
from ..rulekit.loop import loop_rule
from ..rulekit.rule import Rule
from ..torch_compat.operators import RANDOM, OpOverload, decomposition_of
from .general import general_run, unbatched_run

LOOP = "core (loop)"  # the pack, as it were, of operators without a rule


def leaf_rule(op: OpOverload) -> Rule:
    """Return how an operator with a kernel of its own and no rule runs: PyTorch's decomposition, else the loop."""
    looped = Rule(loop_rule(op), "physical", LOOP)
    views = any(r.alias_info is not None for r in op._schema.returns)
    body = None if views or op._schema.is_mutable else decomposition_of(op)  # prims have no rules
    if body is None:
        return looped

    def parts(level: Level, *args: Any, **kwargs: Any) -> Any:
        with level.pushed():
            return body(*args, **kwargs)

    if RANDOM not in op.tags:
        parts = asking(parts, op, logical=True)

    def decompose(level: Level, *args: Any, **kwargs: Any) -> Any:
        if not any_batched(level, args, kwargs):
            return unbatched_run(op, op)(level, args, kwargs)
        out = parts(level, *args, **kwargs)
        return out if out is not NotImplemented else general_run(looped, op, op, None)(level, args, kwargs)

    return Rule(decompose, "logical", "core (decomposition)")
