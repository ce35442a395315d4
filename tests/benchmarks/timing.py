"""Timing two ways of doing one thing in turn, so that a machine's drift falls on both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def microseconds(run: Callable[[], object], seconds: float = 0.02) -> float:
    """Return the mean time of one call over a short burst of calls."""
    count, elapsed = 1, 0.0
    while True:
        start = time.perf_counter()
        for _ in range(count):
            run()
        elapsed = time.perf_counter() - start
        if elapsed > seconds:
            return 1e6 * elapsed / count
        count = max(count * 2, int(count * seconds / max(elapsed, 1e-7)))


def in_turn(runs: dict[str, Callable[[], object]], rounds: int = 9) -> dict[str, float]:
    """Time several callables in alternation.

    Args:
        runs: callables by name.
        rounds: bursts of each.

    Returns:
        The median of the bursts, in microseconds, by name.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(microseconds(run))
    return {name: statistics.median(t) for name, t in times.items()}
