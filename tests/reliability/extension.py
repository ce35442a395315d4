"""C++ that knows nothing of vmap: the functions of a pybind11 extension."""

from __future__ import annotations

import collections
import gc
from collections.abc import Iterator
from typing import Any

import torch

from tests.extension import build
from tests.extension.calls import CALLS, KEEP, LIMITS, call, outcome
from tests.reliability.rows import Row, fresh, row

REFUSED = "refused with an error that names operator, line and way out"


def on_batched() -> dict[str, int]:
    """Call every function with a batched tensor; return how often what came out."""
    from vmap_core import VmapError, vmap

    cpp, found = build.extension(), collections.Counter[str]()
    x = torch.arange(12.0).reshape(3, 4) + 1
    for name in CALLS:
        result: list[Any] = []

        def f(a: Any, name: str = name, result: list[Any] = result) -> Any:
            try:
                result.append(call(cpp, name, a))
            except VmapError:
                result.append(REFUSED)
            except Exception:
                result.append("an error in words of its own")
            return a

        vmap(f)(x)
        if isinstance(result[0], str) and result[0] not in LIMITS.values():
            found[result[0]] += 1
        elif name in LIMITS:
            found["reads the tensor's own fields (see below)"] += 1
        elif name == "call_back_with_object":
            found["right"] += 1
        elif name == "identity":
            found["gives what refuses"] += 1
        else:
            found[f"unexpected: {name}"] += 1
    return dict(found)


def on_what_is_made_inside() -> dict[str, int]:
    """Call every function with a tensor made inside; return how often that is not what a plain one gives."""
    from vmap_core import vmap

    cpp, faults = build.extension(), collections.Counter[str]()
    for name in CALLS:
        seen: list[Any] = []
        vmap(lambda a, seen=seen, name=name: (seen.append(outcome(cpp, name, torch.arange(4.0) + 1)), a)[1])(
            torch.ones(3)
        )
        expected = outcome(cpp, name, torch.arange(4.0) + 1)
        try:
            if isinstance(expected, str):
                assert seen[0] == expected
            else:
                torch.testing.assert_close(seen[0], expected)
        except AssertionError:
            faults[f"different: {name}"] += 1
    return dict(faults)


def kept(times: int) -> dict[str, int]:
    """Let C++ keep tensors beyond their vmap, use them and drop them."""
    from vmap_core import VmapError, vmap

    cpp, faults = build.extension(), collections.Counter[str]()
    x = torch.arange(12.0).reshape(3, 4)
    gc.freeze()  # collections look at what is made from here on
    for i in range(times):
        name = KEEP[i % len(KEEP)]

        def f(a: Any, name: str = name) -> Any:
            made = torch.arange(4.0)
            call(cpp, name, made)
            call(cpp, name, a)
            return a + made

        faults["different results"] += not torch.equal(vmap(f)(x), x + torch.arange(4.0))
        if i % 50 == 0:
            gc.collect()
        try:
            cpp.use_kept()
            faults["uses of what has escaped that pass"] += 1
        except VmapError:
            pass
        if i % 7 == 0:
            cpp.drop()
    return dict(faults)


def rows(quick: bool) -> Iterator[Row]:
    """Iterate over the rows; one that says so where there is no compiler."""
    if build.why_not() is not None:
        yield Row("a pybind11 extension", 0, f"not tried: {build.why_not()}", True)
        return
    found = fresh(on_batched)
    bad = {what: n for what, n in found.items() if what.startswith(("unexpected", "process"))}
    text = ", ".join(f"{n} {what}" for what, n in sorted(found.items(), key=lambda item: -item[1]))
    yield row("a pybind11 extension's functions, given a batched tensor", sum(found.values()), bad, text)
    yield row(
        "the same, given a tensor made inside",
        len(CALLS),
        fresh(on_what_is_made_inside),
        "as a plain tensor",
    )
    times = 300 if quick else 20_000
    yield row(
        "tensors that C++ keeps, uses after their vmap, and drops", times, fresh(kept, times),
        "a batched one refuses, others are tensors",
    )  # fmt: skip
