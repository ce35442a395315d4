"""`torch.utils.checkpoint` inside a mapped function: what it recomputes later needs its levels back."""

from __future__ import annotations

from typing import Any

from vmap_core.extend import BatchedTensor, current_levels, map_leaves, patch, resumed, without_modes

from ._state import note_checkpoint
from ._torch import CHECKPOINT_GENERATOR, SAVES_BY_A_FUNCTION, TAKES_TUPLES


@patch(
    CHECKPOINT_GENERATOR,
    "What checkpoint() computes again in the backward pass, after vmap has returned, needs the levels of its first run.",
)
def recompute_at_levels(native: Any) -> Any:
    """Run the recomputation at the levels of the first computation."""

    def generator(function: Any, *given: Any, **named: Any) -> Any:
        note_checkpoint()
        levels = current_levels()
        if not levels:
            return native(function, *given, **named)
        if TAKES_TUPLES:
            args, kwargs = given
        else:  # five settings come first
            args, kwargs = given[5:], named

        def recompute(*_: Any, **__: Any) -> Any:
            with resumed(levels):
                return function(*args, **kwargs)

        # C++ keeps the arguments it is given, and reads their device: those are the physical ones.
        physical = map_leaves(_physical, args)
        if TAKES_TUPLES:
            return native(recompute, physical, {}, **named)
        steps = native(recompute, *given[:5], *physical)
        return _steps(steps) if SAVES_BY_A_FUNCTION else steps

    return generator


def _steps(steps: Any) -> Any:
    """Run what checkpoint() does before and after the function with no level on the stack."""
    with without_modes():
        next(steps)
    yield
    with without_modes():
        next(steps, None)


def _physical(x: Any) -> Any:
    while type(x) is BatchedTensor:
        x = x._value
    return x
