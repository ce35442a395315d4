"""A map below the dispatcher: over tensors that are seen there only, such as tangents."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..dispatch.lowering import LoweredTensor, dispatch_keys, lower
from ..levels.layout import mapped
from ..levels.level import Level
from ..levels.tensor import BatchedTensor, make_batched
from ..rulekit.packs import current_table


class _Running(threading.local):
    """The maps that run in this thread, outermost first."""

    def __init__(self) -> None:
        self.levels: list[Level] = []


_running = _Running()
_OUTSIDE = -1_000_000  # depth of the first: outside all levels on the stack


def lowered_map(function: Callable[[list[Any]], Sequence[Any]], vectors: Sequence[Any]) -> list[Any]:
    """Call a function once on tensors whose leading dim is hidden, and return its results with that dim in front.

    Unlike with vmap, no level is on the stack meanwhile, so the function must not compute on the tensors: it may only
    hand them to PyTorch, which computes on them in C++ (``make_dual``). What does not depend on them is computed once.

    Args:
        function: takes a list of tensors of shape ``(*)`` and returns a sequence of tensors.
        vectors: physical tensors of shape ``(n, *)``.
    """
    size = vectors[0].shape[0]
    level = Level(size, "error", current_table(), function)
    outside = len(_running.levels)
    level.depth = _OUTSIDE + outside
    level.dispatch_keys = dispatch_keys()

    try:
        _running.levels.append(level)
        return [_raised(x, size) for x in function([lower(make_batched(v, 0, level)) for v in vectors])]
    finally:
        del _running.levels[outside:]
        level.active = False


def _raised(x: Any, size: int) -> Any:
    if type(x) is BatchedTensor:
        value = _raised(x._value, size)
        return mapped(value, None if x._bdim is None else x._bdim + 1, x._level)
    if type(x) is not LoweredTensor:
        return x.expand(size, *x.shape)
    bdim = x._batched._bdim
    value = x._batched._value
    return value.expand(size, *value.shape) if bdim is None else value.movedim(bdim, 0)
