"""`torch.utils.checkpoint` inside a mapped function: what it recomputes later needs its levels back."""

from __future__ import annotations

import functools
from typing import Any

import torch.utils.checkpoint

from vmap_core.extend import BatchedTensor, current_levels, resumed

_NAME = "_checkpoint_without_reentrant_generator"  # what checkpoint() looks up on every call


def install() -> None:
    """Let the recomputation run at the levels of the first computation; again is harmless."""
    native = getattr(torch.utils.checkpoint, _NAME)
    if hasattr(native, "_vmap_native"):
        return

    @functools.wraps(native)
    def generator(function: Any, p: Any, c: Any, d: Any, debug: Any, early_stop: Any, *args: Any, **kwargs: Any) -> Any:
        levels = current_levels()
        if not levels:
            return native(function, p, c, d, debug, early_stop, *args, **kwargs)

        def recompute(*_: Any, **__: Any) -> Any:
            with resumed(levels):
                return function(*args, **kwargs)

        # C++ keeps the arguments it is given, and reads their device: those are the physical ones.
        return native(recompute, p, c, d, debug, early_stop, *map(_physical, args))

    generator._vmap_native = native  # type: ignore[attr-defined]
    setattr(torch.utils.checkpoint, _NAME, generator)


def _physical(x: Any) -> Any:
    while type(x) is BatchedTensor:
        x = x._value
    return x
