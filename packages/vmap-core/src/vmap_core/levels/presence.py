"""Whether any mapped function runs in this process, for those who set something up while one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _nothing(who: Any) -> None:
    """Do nothing."""


class _Presence:
    """What is called for each level that comes and goes, in any thread, with the level or whoever stands for some.

    Attributes:
        enter: called before a level is put on the stack.
        leave: called after it was taken off; harmless for who has left, or never came: an interrupt may come at any moment.
    """

    __slots__ = ("enter", "leave")

    def __init__(self) -> None:
        self.enter: Callable[[Any], None] = _nothing
        self.leave: Callable[[Any], None] = _nothing


presence = _Presence()
