"""Who serves an operator: the one answer that the planner, autocast, `explain` and ``vmap rules`` go by."""

from __future__ import annotations

from typing import Any

import torch

from ..rulekit.families import default_rule
from ..rulekit.rule import Table
from ..rulekit.torch_library import registered_rule
from ..torch_compat.operators import RANDOM, OpOverload, OpOverloadPacket, is_leaf, overloads_of
from .leaves import leaf_rule
from .plan import Served

PARTS = Served("its parts, through the dispatcher")
ONCE = Served("no tensors: once, for all samples")


def resolve(table: Table, op: OpOverload) -> Served:
    """Tell who serves an overload.

    In this order: for ``out=``, who computes what is written; a rule of a pack; the family that its tag names; for one that
    writes in place, who computes what is written; a rule registered with PyTorch; then, for a kernel of its own, PyTorch's
    decomposition or the loop; for any other, its parts.
    """
    schema, mutable = op._schema, op._schema.is_mutable
    if any(a.is_out for a in schema.arguments):
        return _written(table, without_out(op), "computed, then written to out=")
    functional = functional_of(op) if mutable else None
    if functional is not None and torch.Tag.inplace_view in op.tags:
        return Served("changes metadata in place", None, functional)
    rule = table.rule(op)
    if rule is not None:
        return Served("rule", rule)
    rule = default_rule(op)
    if rule is not None:
        return Served("by tag", rule)
    if functional is not None and RANDOM not in op.tags:
        return _written(table, functional, f"as {functional}, then written")
    rule = None if mutable else registered_rule(op)
    if rule is not None:
        return Served("registered", rule)
    if RANDOM not in op.tags and not any("Tensor" in str(a.type) for a in schema.arguments):
        return ONCE
    if not is_leaf(op):
        return PARTS
    rule = leaf_rule(op)
    return Served("decomposition" if rule.kind == "logical" else "loop", rule)


def _written(table: Table, op: OpOverload | None, how: str) -> Served:
    return Served(how, None if op is None else resolve(table, op).rule, op)


def functional_of(op: OpOverload) -> Any:
    """Return the out-of-place overload that one which writes to its first tensor (``add_``) repeats, if there is one."""
    namespace, _, name = op._schema.name.partition("::")
    if not name.endswith("_") or name.endswith("__") or str(op._schema.arguments[0].type) != "Tensor":
        return None
    return _computing(op, getattr(getattr(torch.ops, namespace), name[:-1], None))


def without_out(op: OpOverload) -> Any:
    """Return the overload that computes what one with ``out=`` writes, if there is one."""
    return _computing(op, op.overloadpacket)


def _computing(op: OpOverload, packet: Any) -> Any:
    """Return the overload that takes what another one takes, and writes nothing."""
    taken = [(a.name, str(a.type)) for a in op._schema.arguments if not a.is_out]
    for overload in overloads_of(packet) if isinstance(packet, OpOverloadPacket) else ():
        if not overload._schema.is_mutable and taken == [(a.name, str(a.type)) for a in overload._schema.arguments]:
            return overload
    return None
