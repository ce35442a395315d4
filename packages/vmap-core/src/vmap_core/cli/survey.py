"""Who serves an operator, read off the rules in force without running anything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from ..dispatch.inplace import functional_of
from ..observe.names import name_of
from ..rulekit.families import default_rule
from ..rulekit.packs import current_table, install_hint
from ..rulekit.rule import Rule, Table
from ..rulekit.torch_library import registered_rule
from ..torch_compat.operators import OpOverload, decomposition_of, is_leaf, overloads


@dataclass(frozen=True)
class Served:
    """How one operator is mapped.

    Attributes:
        operator: its name.
        pack: the pack that serves it; None for the slow loop.
        how: ``rule``, ``by tag``, ``parts`` ...
        rule: where the rule is, or how to get it.
    """

    operator: str
    pack: str | None
    how: str
    rule: str = ""


def survey(pattern: str = "", pack: str | None = None, everything: bool = False) -> list[Served]:
    """Tell who serves the operators whose name matches.

    Args:
        pattern: a part of a name, a regular expression, or a function such as ``torch.linalg.solve``; "" for all.
        pack: only those that this pack serves.
        everything: without a pattern, look at all of PyTorch's public operators, too; else only at those with rules.
    """
    table = current_table()
    names = re.compile(as_regex(pattern), re.IGNORECASE)
    found: dict[str, Served] = {}
    for key, rule in table.rules.items():
        name = name_of(key)
        if names.search(name) or names.search(rule.pack):
            found[name] = Served(name, rule.pack, "rule", _place(rule))
    for op in overloads() if pattern or everything else ():
        private = op._schema.name.partition("::")[2].startswith("_") and not pattern
        if str(op) not in found and not private and names.search(str(op)):
            found[str(op)] = who_serves(table, op)
    return sorted(
        (s for s in found.values() if pack is None or (s.pack or "").partition(".")[0] == pack),
        key=lambda s: s.operator,
    )


def who_serves(table: Table, op: OpOverload) -> Served:
    """Tell how one overload is mapped."""
    name, rule = str(op), table.rule(op)
    if rule is not None:
        return Served(name, rule.pack, "rule", _place(rule))
    if torch.Tag.inplace_view in op.tags:
        return Served(name, "core", "changes metadata in place")
    if op._schema.is_mutable:
        functional = functional_of(op)
        served = default_rule(op)
        if served is not None:
            return Served(name, "core", "by tag", _place(served))
        if functional is not None and functional is not op:
            return Served(name, who_serves(table, functional).pack, f"as {functional}, then written")
        plain = _without_out(op)
        if plain is not None:
            return Served(name, who_serves(table, plain).pack, "computed, then written to out=")
    rule = default_rule(op) or registered_rule(op)
    if rule is not None:
        return Served(
            name, rule.pack.partition(" ")[0], "by tag" if rule.pack.startswith("core") else "registered", _place(rule)
        )
    if not any("Tensor" in str(a.type) for a in op._schema.arguments):
        return Served(name, "core", "no tensors: once, for all samples")
    if not is_leaf(op):
        return Served(name, "core", "its parts")
    if decomposition_of(op) is not None:
        return Served(name, "core", "decomposition")
    hint = install_hint(op).partition(": ")[2]
    return Served(name, None, "loop", hint if hint.startswith("pip install") else "")


def _place(rule: Rule) -> str:
    function: Any = rule.function
    return f"{function.__module__}.{function.__name__}"


def as_regex(pattern: str) -> str:
    """Return a regular expression for what a user asks for: a function as written in Python, a part of a name, or a regex.

    Examples:
        >>> as_regex("torch.linalg.solve"), as_regex("F.conv2d"), as_regex("conv"), as_regex("^aten.conv.d$")
        ('(^|\\\\.)linalg[._]solve(\\\\.\\\\w+)?$', '(^|\\\\.)conv2d(\\\\.\\\\w+)?$', 'conv', '^aten.conv.d$')
    """
    if any(c in pattern for c in "^$*+?[]()|\\"):
        return pattern
    name = re.sub(r"^(torch\.(nn\.)?(functional\.|Tensor\.)?|(nn\.)?functional\.|F\.|Tensor\.)", "", pattern)
    if name == pattern or name.startswith("ops."):
        return re.escape(pattern.removeprefix("torch.ops."))
    parts = "[._]".join(map(re.escape, name.split(".")))
    return rf"(^|\.){parts}(\.\w+)?$"


def _without_out(op: OpOverload) -> OpOverload | None:
    """Return the overload that computes what one with ``out=`` writes."""
    mine = [(a.name, str(a.type)) for a in op._schema.arguments if not a.is_out]
    if len(mine) == len(op._schema.arguments):
        return None
    for name in op.overloadpacket.overloads():
        other = getattr(op.overloadpacket, name)
        if not other._schema.is_mutable and [(a.name, str(a.type)) for a in other._schema.arguments] == mine:
            return other
    return None
