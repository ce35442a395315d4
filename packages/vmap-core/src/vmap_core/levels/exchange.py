"""Exchange of the two innermost levels, for a rule that has to run below the level outside its own."""

from __future__ import annotations

from typing import Any

from ..torch_compat.mode_stack import pop_mode, push_mode
from .layout import mapped
from .level import Level
from .stack import current_levels
from .tensor import BatchedTensor


class exchanged:
    """Puts a level that is off the stack in the place of the innermost one on it, and gives that one.

    Rules of the level given then run with ``inner`` outside it. Modes of the user's above that level are left off.

    Args:
        inner: the level whose rule runs.
    """

    def __init__(self, inner: Level) -> None:
        self.inner = inner
        self.outer = current_levels()[-1]
        self.above: list[Any] = []

    def __enter__(self) -> Level:
        """Exchange them."""
        while (mode := pop_mode()) is not self.outer:
            self.above.append(mode)
        push_mode(self.inner)
        return self.outer

    def __exit__(self, *exc: object) -> None:
        """Exchange them back."""
        pop_mode()
        for mode in (self.outer, *reversed(self.above)):
            push_mode(mode)


def exchange(x: Any, inner: Level, outer: Level) -> BatchedTensor:
    """Return a tensor with its two innermost levels exchanged.

    Args:
        x: a tensor whose batch dim at ``inner`` comes first, and that at ``outer``, of its value, second; either may
            be missing.
        inner: the level that x belongs to.
        outer: the level of its value, to which the result belongs.
    """
    value, inner_dim = (x._value, x._bdim) if type(x) is BatchedTensor and x._level is inner else (x, None)
    outer_dim = None
    if type(value) is BatchedTensor and value._level is outer:
        value, outer_dim = value._value, value._bdim
    if inner_dim is not None and outer_dim is not None:
        if outer_dim <= inner_dim:
            inner_dim += 1
        else:
            outer_dim -= 1
    return mapped(mapped(value, inner_dim, inner), outer_dim, outer)
