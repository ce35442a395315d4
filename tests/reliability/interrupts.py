"""KeyboardInterrupt at any moment: the next call works, and nothing stays on the stack of modes."""

from __future__ import annotations

import collections
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack as modes

from tests.reliability.rows import Row, fresh, row


def work() -> Callable[[], Any]:
    """Return what is interrupted: nested, with a gradient, a loop, a write and a chunk."""
    from vmap_autograd import grad
    from vmap_core import fallback_policy, vmap

    x = torch.randn(4, 3)

    def f(a: Any) -> Any:
        total = torch.zeros(3)
        total += vmap(lambda b: a * b)(a).sum(0)
        return total + grad(lambda b: (b.sin() * a).sum())(a) + torch.histc(a, 3)

    def run() -> Any:
        with fallback_policy("silent"):
            return vmap(f, chunk_size=2)(x), vmap(lambda a: a + 1)(x)

    return run


class _Check:
    """Looks after each interrupt."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run, self.expected = run, run()
        self.faults: collections.Counter[str] = collections.Counter()

    def __call__(self, error: BaseException) -> None:
        """Note what is wrong with what was raised, and with a call afterwards."""
        if not isinstance(error, KeyboardInterrupt):
            self.faults[f"other errors in its place ({type(error).__name__})"] += 1
        try:
            again = self.run()
        except Exception as error:
            self.faults[f"calls afterwards that fail ({type(error).__name__})"] += 1
        else:
            self.faults["calls afterwards that differ"] += not all(map(torch.equal, again, self.expected))
        if left := modes():
            self.faults["times that a level stays on the stack"] += 1
            for _ in left:
                torch._C._pop_torch_function_stack()


def by_a_timer(times: int) -> dict[str, int]:
    """Interrupt so many calls by a signal, each at a random moment."""
    torch.set_num_threads(1)
    run = work()
    check, draw = _Check(run), random.Random(0)
    start = time.perf_counter()
    for _ in range(20):
        run()
    takes = (time.perf_counter() - start) / 20
    armed = False

    def interrupt(*_: Any) -> None:
        if armed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    done = 0
    while done < times:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, takes))
            run()
            armed = False
        except BaseException as error:
            armed = False
            done += 1
            check(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return dict(check.faults)


def at_each_line(step: int) -> dict[str, int]:
    """Interrupt a call at every so manieth line of ours that it runs, one after the other."""
    torch.set_num_threads(1)
    run = work()
    run()
    check = _Check(run)
    left = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left
        if not frame.f_globals.get("__name__", "").startswith(("vmap_", "torch.overrides")):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    done, at = 0, 1
    while True:
        left = at
        sys.settrace(trace)
        try:
            run()
            break  # it has fewer lines
        except BaseException as error:
            sys.settrace(None)
            check(error)
        finally:
            sys.settrace(None)
        done, at = done + 1, at + step
    return {**check.faults, "lines": -done}


def rows(quick: bool) -> Iterator[Row]:
    """Iterate over the rows."""
    times, step = (100, 50) if quick else (5_000, 1)
    yield row(
        "interrupts at random moments", times, fresh(by_a_timer, times), "the next call right, nothing left behind"
    )
    faults = fresh(at_each_line, step)
    lines = -faults.pop("lines", 0)
    yield row(
        "interrupts at each line of ours that a call runs", lines, faults, "the next call right, nothing left behind"
    )
