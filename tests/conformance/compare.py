"""Running a case mapped and in a Python loop, and telling how the two compare."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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
    warned: list[str] = field(default_factory=list)


def loop(function: Callable[..., list[Any]], tensors: list[Any], levels: list[tuple[int | None, ...]]) -> list[Any]:
    """Return what the mapped function must return: one call a sample, outputs stacked in front."""
    if not levels:
        return function(*tensors)
    dims = levels[0]
    size = next(t.shape[d] for t, d in zip(tensors, dims, strict=True) if d is not None)
    samples = [
        loop(
            function,
            [t if d is None else own_memory(t.select(d, i)) for t, d in zip(tensors, dims, strict=True)],
            levels[1:],
        )
        for i in range(size)
    ]
    return [torch.stack(column) for column in zip(*samples, strict=True)] if samples else []


def own_memory(sample: Any) -> Any:
    """Return a sample as a tensor of its own: some operators look at strides and storage offsets."""
    return sample.clone(memory_format=torch.contiguous_format) if sample.layout == torch.strided else sample


def mapped(vmap: Vmap, case: Case, randomness: str) -> list[Any]:
    """Return the outputs under vmap, one level for each entry of the case."""
    function: Callable[..., Any] = case.function
    for dims in reversed(case.levels):
        function = vmap(function, in_dims=dims, randomness=randomness)
    return function(*case.tensors)


def run(vmap: Vmap, case: Case, random: bool) -> Outcome:
    """Compare one case."""
    gradient = case.mode == "gradient"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            empty = any(t.shape[d] == 0 for t, d in zip(case.tensors, case.levels[0], strict=True) if d is not None)
            expected = (
                _with_gradient(lambda ts: loop(case.function, ts, case.levels), case)
                if gradient
                else loop(case.function, case.tensors, case.levels)
            )
        except Exception as error:  # the operator does not take this input
            return Outcome("skip", repr(error))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            randomness = "different" if random else "error"
            got = _with_gradient(lambda ts: mapped(vmap, Case(case.mode, case.function, ts, case.levels, ""), randomness),
                                 case) if gradient else mapped(vmap, case, randomness)  # fmt: skip
        except Exception as error:
            return Outcome("error", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300])
    slow = sorted({_slow_op(w) for w in caught} - {""})
    problem = _shapes_only(got, case) if empty else _difference(expected, got, random, 2e-3 if gradient else 2e-4)
    if problem:
        return Outcome("differs", problem)
    return Outcome("fallback", ", ".join(slow)) if slow else Outcome("clean")


def _slow_op(warning: Any) -> str:
    """Return the operator that a warning says ran in the slow loop, ours or the peer's."""
    message = str(warning.message)
    if hasattr(warning.message, "op"):
        return str(warning.message.op)
    marker = "we have not yet implemented the batching rule for "
    return message.partition(marker)[2].partition(".")[0] if marker in message else ""


def _with_gradient(run: Callable[[list[Any]], list[Any]], case: Case) -> list[Any]:
    """Return the outputs and the gradients of a weighted sum of them with respect to every floating input."""
    tensors = [t.detach().clone().requires_grad_(t.is_floating_point() or t.is_complex()) for t in case.tensors]
    outputs = run(tensors)
    total: Any = 0
    for o in outputs:
        if o.requires_grad:
            weight = torch.linspace(0.5, 1.5, max(o.numel(), 1))[: o.numel()].reshape(o.shape)
            total = total + ((o * weight).sum().abs() if o.is_complex() else (o * weight).sum())
    leaves = [t for t in tensors if t.requires_grad]
    differentiable = isinstance(total, Tensor)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True) if differentiable else [None] * len(leaves)
    return [*outputs, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True))]


def _shapes_only(got: list[Any], case: Case) -> str:
    bad = [tuple(g.shape) for g in got if g.shape[0] != 0]
    return f"batch of none gave shapes {bad}" if bad else ""


def _difference(expected: list[Any], got: list[Any], random: bool, tolerance: float) -> str:
    if len(expected) != len(got):
        return f"{len(got)} outputs, expected {len(expected)}"
    for i, (e, g) in enumerate(zip(expected, got, strict=True)):
        if e.shape != g.shape:
            return f"output {i}: shape {tuple(g.shape)}, expected {tuple(e.shape)}"
        if e.dtype != g.dtype:
            return f"output {i}: dtype {g.dtype}, expected {e.dtype}"
        if random:
            continue
        try:
            torch.testing.assert_close(
                g.detach(), e.detach(), rtol=tolerance, atol=tolerance, equal_nan=True, check_stride=False
            )
        except AssertionError as error:
            return f"output {i}: " + " ".join(str(error).split())[:200]
    return ""
