"""Running a case mapped and in a Python loop, and telling how the two compare."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vmap_core.testing import difference, empty_difference, loop, mapped, with_gradients

from .cases import Case

Vmap = Callable[..., Callable[..., Any]]


@dataclass
class Outcome:
    """How one case went: ``clean``, ``fallback``, ``error``, ``differs``, or ``skip`` where the loop fails too.

    Attributes:
        verdict: see above.
        detail: the fallback's operators, the error, or the difference.
    """

    verdict: str
    detail: str = ""


def run(vmap: Vmap, case: Case, random: bool) -> Outcome:
    """Compare one case."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            apart = case.mode != "layout"
            expected = _outputs(case, lambda inputs: loop(case.function, inputs, case.levels, apart=apart))
            if 0 in case.sizes:
                one = case.function(*(t.clone() for t in case.sample))
    except Exception as error:  # the operator does not take this input
        return Outcome("skip", repr(error))
    options = {"randomness": "different" if random else "error"}
    inputs: list[Tensor] = []

    def run_mapped(tensors: list[Tensor]) -> list[Tensor]:
        inputs[:] = tensors
        return mapped(vmap, case.function, tensors, case.levels, **options)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            got = _outputs(case, run_mapped)
        except Exception as error:
            text = str(error).partition("\n")[0]
            return Outcome("error", f"{type(error).__name__}: {text}"[:300])
    if 0 in case.sizes:
        problem = empty_difference(one, got, case.sizes)
    else:
        problem = difference(
            expected, got, values=not random, slack=10 if case.mode in ("gradient", "vjp", "jvp", "vectors") else 1
        )
    if not problem and case.writes:
        problem = difference(got[:1], [_batch_first(inputs[0], case)])
        problem = problem and f"the input was not written through: {problem}"
    slow = sorted({_slow_op(w) for w in caught} - {""})
    if problem:
        return Outcome("differs", problem)
    return Outcome("fallback", ", ".join(slow)) if slow else Outcome("clean")


def _outputs(case: Case, run: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
    return with_gradients(run, case.tensors()) if case.mode == "gradient" else run(case.tensors())


def _batch_first(x: Tensor, case: Case) -> Tensor:
    for level, dims in enumerate(case.levels):
        x = x.movedim((dims[0] or 0) + level, level)
    return x


def _slow_op(warning: Any) -> str:
    """Return the operator that a warning says ran in the slow loop, ours or the peer's."""
    message = str(warning.message)
    if hasattr(warning.message, "op"):
        return str(warning.message.op)
    marker = "we have not yet implemented the batching rule for "
    return message.partition(marker)[2].partition(".")[0] if marker in message else ""
