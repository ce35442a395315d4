"""Timing several ways of doing one thing in turn, so that a machine's drift falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Run = Callable[[], Any]


def nothing() -> None:
    """Wait for nothing: a CPU is done when Python is."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: what is done.
        make: prepares it, and returns each way to do it by the name of its column.
        grad: whether gradients are on.
        rounds: bursts of each way.
        operations: how many operations there are, where overhead an operation is of interest.
        wait: waits until what has been started is done, as a GPU works while Python goes on.
    """

    name: str
    make: Callable[[], dict[str, Run]]
    grad: bool = False
    rounds: int = 9
    operations: int = 0
    wait: Run = nothing


def microseconds(run: Run, seconds: float = 0.02, wait: Run = nothing) -> float:
    """Return the mean time of one call over a short burst of calls."""
    count, elapsed = 1, 0.0
    while True:
        start = time.perf_counter()
        for _ in range(count):
            run()
        wait()
        elapsed = time.perf_counter() - start
        if elapsed > seconds:
            return 1e6 * elapsed / count
        count = max(count * 2, int(count * seconds / max(elapsed, 1e-7)))


def in_turn(runs: dict[str, Run], rounds: int = 9, seconds: float = 0.02, wait: Run = nothing) -> dict[str, float]:
    """Time several callables in alternation.

    Args:
        runs: callables by name.
        rounds: bursts of each.
        seconds: length of a burst, at least.
        wait: ends a burst.

    Returns:
        The median of the bursts, in microseconds, by name.
    """
    for run in runs.values():
        run()
    wait()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(microseconds(run, seconds, wait))
    return {name: statistics.median(t) for name, t in times.items()}


def works(run: Run) -> bool:
    """Tell whether a way runs at all: the peer raises for some."""
    try:
        run()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def measure(row: Row, quick: bool = False) -> dict[str, Any]:
    """Time a row.

    Args:
        row: what to time.
        quick: one short burst, to see that it runs.

    Returns:
        Its name, and microseconds a call of each way that runs.
    """
    with torch.set_grad_enabled(row.grad):
        runs = {name: run for name, run in row.make().items() if works(run)}
        times = in_turn(runs, 1, 0.0, row.wait) if quick else in_turn(runs, row.rounds, wait=row.wait)
    return {"row": row.name, "operations": row.operations, **times}
