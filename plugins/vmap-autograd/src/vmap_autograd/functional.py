"""`torch.autograd.functional` inside a mapped function: where it maps over vectors, it does so with our vmap."""

from __future__ import annotations

import functools
from typing import Any

import torch.autograd.functional

from vmap_core import vmap
from vmap_core.extend import current_levels

_NAME = "_vmap"  # what jacobian(vectorize=True) and hessian(vectorize=True) look up on every call


def install() -> None:
    """Let ``vectorize=True`` take our vmap inside mapped functions; again is harmless."""
    native = getattr(torch.autograd.functional, _NAME)
    if hasattr(native, "_vmap_native"):
        return

    @functools.wraps(native)
    def choose(func: Any, *args: Any, **kwargs: Any) -> Any:
        return vmap(func) if current_levels() else native(func, *args, **kwargs)

    choose._vmap_native = native  # type: ignore[attr-defined]
    setattr(torch.autograd.functional, _NAME, choose)
