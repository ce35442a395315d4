"""`torch.utils.checkpoint` inside a mapped function.

What it recomputes later needs its levels back, and modules need the tensors that functional_call, or an Ensemble, had put
into them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from vmap_core.extend import (
    BatchedTensor,
    as_now,
    current_levels,
    known_as_swapped,
    map_leaves,
    patch,
    resumed,
    without_modes,
)

from ._state import note_checkpoint
from ._torch import CHECKPOINT_GENERATOR, REPARAMETRIZE, SAVES_BY_A_FUNCTION, TAKES_TUPLES


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

        modules_as_now = as_now()

        def recompute(*_: Any, **__: Any) -> Any:
            with resumed(levels), modules_as_now():
                return function(*args, **kwargs)

        # C++ keeps the arguments it is given, and reads their device: those are the physical ones.
        physical = map_leaves(_physical, args)
        if TAKES_TUPLES:
            return native(recompute, physical, {}, **named)
        steps = native(recompute, *given[:5], *physical)
        return _steps(steps) if SAVES_BY_A_FUNCTION else steps

    return generator


@patch(
    REPARAMETRIZE,
    "What checkpoint() computes again has to find the tensors that functional_call() had put into the module.",
    inside=True,
)
def tell_the_level(native: Any) -> Any:
    """Tell the level which module has other tensors in its places."""

    @contextlib.contextmanager
    def reparametrize(module: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
        with native(module, *args, **kwargs), known_as_swapped(module):
            yield

    return reparametrize


def with_modules_as_now(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that finds in modules what was put into them when this was called."""
    modules_as_now = as_now()

    def run(*args: Any, **kwargs: Any) -> Any:
        with modules_as_now():
            return function(*args, **kwargs)

    return run


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
