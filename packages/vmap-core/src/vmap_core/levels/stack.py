"""The level stack: which levels are active, and running with some of them off it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..torch_compat.mode_stack import EnableTorchFunction, mode_at, pop_mode, push_mode, stack_size
from .level import Level
from .level import current_levels as current_levels
from .presence import presence
from .tensor import BatchedTensor


def physically(function: Callable[[Any], Any], value: Any) -> Any:
    """Look at a physical value with the innermost level off the stack."""
    modes = 0 if type(value) is BatchedTensor else stack_size()
    if not modes:
        return function(value)
    mode = pop_mode()
    try:
        return function(value) if modes == 1 else physically(function, value)
    finally:
        push_mode(mode)


def modes() -> list[Any]:
    """Return what is on the stack, outermost first, after taking off the levels of calls that were interrupted."""
    found: list[Any] = []
    for i in range(stack_size()):
        mode = mode_at(i)
        if type(mode) is Level and not mode.active:
            restore(found, ())
            return modes()
        found.append(mode)
    return found


def restore(below: Sequence[Any], gone: Sequence[Level]) -> None:
    """Put the stack back as it was, whatever an interrupt has left on it or taken off.

    An interrupt may come between any two steps, so between taking a level off the stack and the ``try`` that puts it back.

    Args:
        below: what was on it.
        gone: levels that have come since. What else has come is kept: a mode of the user's that was left open.
    """
    found = [mode_at(i) for i in range(stack_size())]
    above = list(found)
    for mode in below:
        if mode in above:
            above.remove(mode)
    above = [m for m in above if not (type(m) is Level and (m in gone or m in below or not m.active))]
    if found != [*below, *above]:
        for _ in found:
            pop_mode()
        for mode in (*below, *above):
            push_mode(mode)


class resumed:
    """Puts levels back on the stack, for code of the mapped function that runs later: in a backward pass.

    Their BatchedTensors are alive again meanwhile. A level that is on the stack already stays where it is. A class, like
    all below: see Note [Contexts that change the stack] in `levels.level`.

    Args:
        levels: outermost first.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        self.below = modes()
        self.missing = [level for level in levels if level not in self.below]
        self.were_active = [level.active for level in self.missing]
        self.enabled = EnableTorchFunction()  # type: ignore[no-untyped-call]

    def __enter__(self) -> None:
        """Put them on the stack."""
        self.enabled.__enter__()
        try:
            presence.enter(self)
            for level in self.missing:
                level.active = True
                level.look_at_autocast()
                push_mode(level)
        except BaseException:  # an interrupt
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        """Take them off again."""
        for level, active in zip(self.missing, self.were_active, strict=True):
            level.active = active
        restore(self.below, self.missing)
        presence.leave(self)
        self.enabled.__exit__(None, None, None)


class below:
    """Takes a level off the stack, leaves the user's own modes that are above it, and gives the level."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.above: list[Any] = []

    def __enter__(self) -> Level:
        """Take it off."""
        while (mode := pop_mode()) is not self.level:
            self.above.append(mode)
        for mode in reversed(self.above):
            push_mode(mode)
        return self.level

    def __exit__(self, *exc: object) -> None:
        """Put it back."""
        for _ in self.above:
            pop_mode()
        push_mode(self.level)
        for mode in reversed(self.above):
            push_mode(mode)
