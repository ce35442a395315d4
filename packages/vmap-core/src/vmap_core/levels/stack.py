"""The level stack: which levels are active, and running with some of them off it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..torch_compat.mode_stack import EnableTorchFunction, mode_at, pop_mode, push_mode, stack_size
from .level import Level
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


def current_levels() -> list[Level]:
    """Return the active levels of this thread, outermost first."""
    modes = (mode_at(i) for i in range(stack_size()))
    return [mode for mode in modes if type(mode) is Level]


@contextlib.contextmanager
def resumed(levels: Sequence[Level]) -> Iterator[None]:
    """Put levels back on the stack, for code of the mapped function that runs later: in a backward pass.

    Their BatchedTensors are alive again meanwhile. A level that is on the stack already stays where it is.

    Args:
        levels: outermost first.
    """
    present = current_levels()
    missing = [level for level in levels if level not in present]
    were_active = [level.active for level in missing]
    presence.enter()
    try:
        with EnableTorchFunction():  # type: ignore[no-untyped-call]
            for level in missing:
                level.active = True
                level.look_at_autocast()
                push_mode(level)
            try:
                yield
            finally:
                for level, active in zip(reversed(missing), reversed(were_active), strict=True):
                    pop_mode()
                    level.active = active
    finally:
        presence.leave()


@contextlib.contextmanager
def below(level: Level) -> Iterator[Level]:
    """Take a level off the stack, and leave the user's own modes that are above it."""
    above = []
    while (mode := pop_mode()) is not level:
        above.append(mode)
    for mode in reversed(above):
        push_mode(mode)
    try:
        yield level
    finally:
        for _ in above:
            pop_mode()
        push_mode(level)
        for mode in reversed(above):
            push_mode(mode)
