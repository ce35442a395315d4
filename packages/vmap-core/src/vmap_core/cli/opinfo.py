"""Each operator of PyTorch's test database (OpInfo), mapped once and compared with the loop, counted by pack."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FallbackWarning, RandomnessError
from ..observe.difference import difference
from ..observe.trace import Trace, recording
from ..testing import batched, loop, mapped, strongest
from ..torch_compat.bindings import emitter
from ..torch_compat.trees import tree_flatten, tree_unflatten
from ..transform.vmap import vmap
from .render import Table

VERDICTS = ("clean", "loop", "error", "differs")


# Entries that call an unbound method inside a lambda.
_UNBOUND = {"item": "item", "normal.in_place": "normal_"} | {
    name: f"{name}_" for name in ("cauchy", "exponential", "geometric", "log_normal", "uniform")
}


class Unavailable(Exception):
    """PyTorch's test database cannot be imported."""


@dataclass(frozen=True)
class Result:
    """How one operator went, and the pack of the rule that served it."""

    operator: str
    pack: str
    verdict: str
    detail: str = ""


def measure(pattern: str = "", samples: int = 1) -> list[Result]:
    """Map the operators whose name matches over the first dim of all their tensors.

    Args:
        pattern: a regular expression.
        samples: samples of each operator; it counts by its worst.

    Raises:
        Unavailable: the database needs a package that is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.testing._internal.common_methods_invocations import op_db
    except ImportError as error:
        raise Unavailable(
            f"PyTorch's operator database cannot be imported: {error}. pip install numpy expecttest"
        ) from None
    named = [(info.name + (f".{info.variant_test_name}" if info.variant_test_name else ""), info) for info in op_db]
    chosen = [(name, info) for name, info in named if re.search(pattern, name)]
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, (name, info) in enumerate(chosen):
            _progress(f"{i + 1}/{len(chosen)} {name}")
            worst = _worst(name, info, samples)
            results += [] if worst is None else [worst]
    _progress("")
    return results


def _progress(text: str) -> None:
    """Say where we are, on a line of its own, if someone looks."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:70]}", end="", file=sys.stderr, flush=True)


def per_pack(results: list[Result]) -> Table:
    """Count verdicts by pack."""
    table = Table("pack", "operators", *VERDICTS)
    for pack in [*sorted({r.pack for r in results}), None]:
        mine = [r for r in results if pack in (None, r.pack)]
        table.add(pack or "all", len(mine), *(sum(r.verdict == v for r in mine) for v in VERDICTS))
    return table


@contextlib.contextmanager
def seeds_set_inside() -> Iterator[None]:
    """Let the database's random operators set their seed, also where samples draw different numbers."""
    kept = torch.manual_seed
    torch.manual_seed = torch.default_generator.manual_seed  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.manual_seed = kept


def _worst(name: str, info: Any, samples: int) -> Result | None:
    dtypes = (torch.float32, torch.int64, torch.bool, torch.complex64)
    dtype = next((d for d in dtypes if d in info.supported_dtypes("cpu")), None)
    results: list[Result] = []
    torch.manual_seed(0)
    for sample in info.sample_inputs("cpu", dtype) if dtype is not None else ():
        result = _one(name, info, sample)
        results += [] if result is None else [result]
        if len(results) == samples:
            break
    return max(results, key=lambda r: VERDICTS.index(r.verdict), default=None)


def _one(name: str, info: Any, sample: Any) -> Result | None:
    # a method by its name: Python takes no BatchedTensor for an unbound one
    op = emitter(getattr(Tensor, _UNBOUND[name]) if name in _UNBOUND else info.op)
    leaves, spec = tree_flatten(((sample.input, *sample.args), sample.kwargs))
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[k] for k in places]

    def function(*own: Any) -> list[Any]:
        filled = list(leaves)
        for place, tensor in zip(places, own, strict=True):
            filled[place] = tensor
        args, kwargs = tree_unflatten(filled, spec)
        with seeds_set_inside():
            return [o for o in tree_flatten(op(*args, **kwargs))[0] if isinstance(o, Tensor)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        strength = strongest(function, tensors, 3) if tensors else None
        if strength is None or not tensors:
            return None
        levels: Any = [(0,) * len(tensors)]
        try:
            inputs = batched(tensors, levels, (3,), strength)
            expected = loop(function, [t.clone() for t in inputs], levels)
        except Exception:  # it does not take these
            return None
        caught.clear()
        with recording() as trace:
            values = "empty" not in name
            try:
                try:
                    got = mapped(vmap, function, inputs, levels)
                except RandomnessError:
                    got, values = mapped(vmap, function, inputs, levels, randomness="different"), False
            except Exception as error:
                return Result(name, _pack(trace), "error", f"{type(error).__name__}: {error}".partition("\n")[0][:200])
    problem = difference(expected, got, values=values)
    if problem:
        return Result(name, _pack(trace), "differs", problem)
    slow = any(isinstance(w.message, FallbackWarning) for w in caught)
    return Result(name, _pack(trace), "loop" if slow else "clean")


def _pack(trace: Trace) -> str:
    """Return the pack whose rule did the work: of the last operation, or, where that was taken apart, of its parts."""
    for top in reversed(trace.operations):
        packs = [o.pack.partition(".")[0].partition(" ")[0] for _, o in top.walk() if o.rule]
        if packs:
            return next((p for p in packs if p != "core"), "core")
    return "core"
