"""``vmap(f, control_flow="split")``: a pack makes of the function one whose samples part where its control flow does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..rulekit.packs import current_table

_offered: list[Callable[[Any], Any]] = []


def offer_control_flow(split: Callable[[Any], Any]) -> None:
    """Let a function of a pack make what ``control_flow="split"`` runs: it is given the mapped function, and returns another."""
    _offered[:] = [split]


def in_steps(func: Any, control_flow: str) -> Any:
    """Return a function whose samples can part.

    Raises:
        ValueError: ``control_flow`` is neither "error" nor "split".
        ImportError: no pack offers it.
    """
    if control_flow != "split":
        raise ValueError(f"vmap: control_flow should be 'error' or 'split'. (got {control_flow!r})")
    current_table()  # loads the packs
    if not _offered:
        raise ImportError(
            "vmap: control_flow='split' needs a pack that is not installed: pip install vmap-control-flow"
        )
    return _offered[0](func)
