"""Autocast's state in this thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._C import _is_any_autocast_enabled as is_autocast_enabled

KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
for _name in dir(torch._C.DispatchKey):
    if _name.startswith("Autocast"):
        KEYS = KEYS | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _name))


def state() -> tuple[torch.dtype | None, ...] | None:
    """Return what autocast is set to in this thread: a dtype for each device it is on for; None if it is off."""
    if not is_autocast_enabled():
        return None
    return tuple(torch.get_autocast_dtype(d) if torch.is_autocast_enabled(d) else None for d in _DEVICES)


def set_state(state: Any) -> None:
    """Set autocast to what `state` has returned."""
    for device, dtype in zip(_DEVICES, state or _OFF, strict=True):
        torch.set_autocast_enabled(device, dtype is not None)
        if dtype is not None:
            torch.set_autocast_dtype(device, dtype)


_DEVICES = ("cpu", "cuda")
_OFF = (None,) * len(_DEVICES)


@contextlib.contextmanager
def without_autocast_cache() -> Iterator[None]:
    """Keep autocast from caching casts of weights within a ``with`` block.

    A cast of a tensor that is gone after the block, or that only seems a leaf, must not be found later.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
