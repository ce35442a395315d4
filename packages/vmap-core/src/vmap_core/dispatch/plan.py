"""Plans: how the calls of one signature run, and who serves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..levels.level import Level
from ..rulekit.rule import Rule

Run = Callable[[Level, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Served:
    """Who serves a call.

    Attributes:
        how: in words: "rule", "by tag", "its parts", "loop" ...
        rule: the rule that runs, or whose result is written.
        written: the result is written to an argument afterwards: the overload that computes it.
    """

    how: str
    rule: Rule | None = None
    written: Any = None

    @property
    def pack(self) -> str:
        """The pack that the rule is from, or in words how the call runs without one."""
        return self.how if self.rule is None else self.rule.pack


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs the calls of one signature, and who serves them.

    Attributes:
        run: what runs them.
        served: who serves them.
        first: what runs them until one has gone well, where that is another way: one that checks the rule.
    """

    run: Run
    served: Served
    first: Run | None = None
