"""Faults that change nothing that can be seen, and why."""

from __future__ import annotations

from .faults import Fault

EQUAL: dict[tuple[str, str], str] = {}
"""A source's name and the change as it is printed, and why it cannot be seen."""


def reason(fault: Fault) -> str | None:
    """Return why a fault changes nothing that can be seen; None if it does, as far as is known."""
    return EQUAL.get((fault.file.name, fault.said()))
