"""Levels learn of changes of autocast."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..levels.stack import current_levels
from ..torch_compat.mode_stack import stack_size


def install() -> None:
    """Let levels learn of changes; again is harmless."""
    native = torch.set_autocast_enabled
    if hasattr(native, "_vmap_native"):
        return

    @functools.wraps(native)
    def set_autocast_enabled(*args: Any, **kwargs: Any) -> None:
        native(*args, **kwargs)
        if stack_size():
            for level in current_levels():
                level.look_at_autocast()

    set_autocast_enabled._vmap_native = native  # type: ignore[attr-defined]
    torch.set_autocast_enabled = set_autocast_enabled
