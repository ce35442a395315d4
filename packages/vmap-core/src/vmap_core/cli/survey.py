"""Who serves an operator, read off the rules in force without running anything."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..dispatch.leaves import LOOP
from ..dispatch.resolve import resolve
from ..observe.names import name_of
from ..rulekit.packs import current_table, install_hint
from ..rulekit.rule import Table
from ..torch_compat.operators import OpOverload, overloads


@dataclass(frozen=True)
class Served:
    """How one operator is mapped.

    Attributes:
        operator: its name.
        pack: the pack that serves it; None for the slow loop.
        how: ``rule``, ``by tag``, ``its parts`` ...
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
            found[name] = Served(name, rule.pack, "rule", rule.place)
    for op in overloads() if pattern or everything else ():
        private = op._schema.name.partition("::")[2].startswith("_") and not pattern
        if str(op) not in found and not private and names.search(str(op)):
            found[str(op)] = who_serves(table, op)
    return sorted(
        (s for s in found.values() if pack is None or (s.pack or "").partition(".")[0] == pack),
        key=lambda s: s.operator,
    )


def who_serves(table: Table, op: OpOverload) -> Served:
    """Tell how one overload is mapped, as the planner has it run."""
    served = resolve(table, op)
    looped = served.rule is not None and served.rule.pack == LOOP
    if looped:
        hint = install_hint(op).partition(": ")[2]
        return Served(str(op), None, served.how, hint if hint.startswith("pip install") else "")
    pack = "core" if served.rule is None else served.rule.pack.partition(" ")[0]
    return Served(str(op), pack, served.how, "" if served.rule is None else served.rule.place)


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
