"""A row of the table, and processes of their own to take its figures in."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

_ANSWER = "import sys; from tests.reliability.rows import answer; answer(*sys.argv[1:])"


class Row(NamedTuple):
    """What was tried, and what came out.

    Attributes:
        tried: in words.
        times: how often.
        result: what came out, in words.
        good: whether that is what should.
    """

    tried: str
    times: int
    result: str
    good: bool


def fresh(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Call a function in a new process.

    Args:
        function: of a module; returns faults, by what they are, and how many there were of each.
        args: numbers, strings, None.

    Returns:
        The faults; a process that ends without an answer is one.
    """
    command = [sys.executable, "-W", "ignore", "-c", _ANSWER, function.__module__, function.__name__, json.dumps(args)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {f"process that ended with status {done.returncode} ({last[:160]})": 1}
    faults: dict[str, Any] = json.loads(lines[-1])
    return faults


def answer(module: str, function: str, args: str) -> None:
    """Print what a function returns, for `fresh`."""
    print("\n" + json.dumps(getattr(importlib.import_module(module), function)(*json.loads(args))))


def row(tried: str, times: int, faults: dict[str, int], otherwise: str) -> Row:
    """Make a row that names the faults; without any, it says what came out ``otherwise``."""
    named = ", ".join(f"{n:,} {what}" for what, n in faults.items() if n)
    return Row(tried, times, named or otherwise, not named)
