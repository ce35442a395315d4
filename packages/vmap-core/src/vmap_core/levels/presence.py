"""Whether any mapped function runs in this process, for those who set something up while one does."""

from __future__ import annotations

from collections.abc import Callable


def _nothing() -> None:
    """Do nothing."""


class _Presence:
    """What is called for each level that comes and goes, in any thread.

    Attributes:
        enter: called before a level is put on the stack.
        leave: called after it was taken off.
    """

    __slots__ = ("enter", "leave")

    def __init__(self) -> None:
        self.enter: Callable[[], None] = _nothing
        self.leave: Callable[[], None] = _nothing


presence = _Presence()
