"""Running a program mapped and in a Python loop, and telling how the two compare."""

from __future__ import annotations

import itertools
import re
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vmap_core import VmapError, compile, vmap
from vmap_core.rulekit.packs import checking
from vmap_core.testing import difference

from .program import FILE, Program

MODES = ("values", "checked", "gradients", "captured")
"""Values; the same while rules' results are checked; gradients through vmap; a captured program, and its replay."""


@dataclass(frozen=True)
class Verdict:
    """How a program went.

    Attributes:
        kind: ``equal``; ``both raise``; ``refused``, by a VmapError, what the loop does; ``error``, another one;
            ``permits``, gives values where the loop raises; ``differs``; ``crash``.
        what: the error's class, and the template of the statement that raised it.
        detail: the error or the difference, in words.
    """

    kind: str
    what: str = ""
    detail: str = ""

    def like(self, other: Verdict) -> bool:
        """Tell whether it is the same fault, for all that one can see."""
        return (self.kind, self.what, _same(self.detail)) == (other.kind, other.what, _same(other.detail)) or (
            self.kind == other.kind == "differs" and self.what == other.what
        )


def _same(detail: str) -> str:
    """Return the first words of an error, without what may differ: places, sizes."""
    return re.sub(r"\d+|\[.*?\]|\(.*?\)", "", detail)[:60]


class Raised(Exception):
    """What a program raised, and at which statement."""

    def __init__(self, error: Exception, program: Program) -> None:
        super().__init__(str(error))
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE and f.lineno]
        place = lines[-1] - 2 if lines else -1
        known = 0 <= place < len(program.statements)
        self.error = error
        self.statement = program.statements[place].template if known else ""


def judge(program: Program, mode: str = "values") -> Verdict:
    """Compare a program with the loop, in one of `MODES`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _judge(program, mode)


def _judge(program: Program, mode: str) -> Verdict:
    mapped: list[Any] = []
    run = _mapped(program, mapped)
    if mode == "captured":
        run = compile(run)
    for seed in (program.seed, program.seed + 1)[: 1 + (mode == "captured")]:
        facts: list[Any] = []
        try:
            expected = _outputs(program, _loop(program, facts, seed, mode == "gradients"), seed, mode)
            if 0 in program.sizes:  # what raises for a sample may raise for none
                one = replace(program, sizes=tuple(max(n, 1) for n in program.sizes))
                _outputs(one, _loop(one, [], seed, mode == "gradients"), seed, mode)
        except Raised as raised:
            expected = raised
        mapped.clear()
        try:
            with checking() if mode == "checked" else nullcontext():
                got = _outputs(program, run, seed, mode)
        except Raised as raised:
            if isinstance(expected, Raised):
                continue
            kind = "refused" if isinstance(raised.error, VmapError) else "error"
            return Verdict(kind, f"{type(raised.error).__name__}: {raised.statement}", str(raised.error))
        replayed = "replayed: " if seed != program.seed else ""
        if isinstance(expected, Raised) and 0 in program.sizes:  # the loop would run for no sample
            continue
        if isinstance(expected, Raised):
            return Verdict("permits", expected.statement, f"{replayed}{type(expected.error).__name__}: {expected}")
        found = _difference(program, expected, got, slack=10 if mode == "gradients" else 2)
        if found:
            return Verdict("differs", "", replayed + _named(program, found))
        if mode != "captured" and 0 not in program.sizes and not _agree(facts, mapped, program.sizes):
            return Verdict("differs", "facts", f"memory: {mapped}, expected {facts[: len(mapped)]}")
    if isinstance(expected, Raised):
        return Verdict("both raise", f"{type(expected.error).__name__}: {expected.statement}", str(expected))
    return Verdict("equal")


def _difference(program: Program, expected: list[Tensor], got: list[Tensor], slack: float) -> str:
    """Return the first difference in words; where a program rounds to 16 bits on the way, so may its results be."""
    found = difference(expected, got, values=False)
    if found or 0 in program.sizes:
        return found
    if "bfloat16" in program.body() or any(i.dtype is torch.bfloat16 for i in program.inputs):
        expected, got = ([o.bfloat16() if o.is_floating_point() else o for o in outputs] for outputs in (expected, got))
    return difference(expected, got, slack=slack)


def _mapped(program: Program, facts: list[Any]) -> Callable[..., Any]:
    run: Callable[..., Any] = program.function(facts)
    for dims in reversed(program.levels()):
        run = vmap(run, in_dims=dims, out_dims=program.out_dim)
    return run


def _loop(program: Program, facts: list[Any], seed: int, apart: bool) -> Callable[..., Any]:
    """Return the loop; where it has no samples, what gives results of the shapes that it would stack.

    Args:
        program: what is run.
        facts: where it puts what it learns of memory.
        seed: of the values of inputs.
        apart: whether samples are to have memory apart: for autograd a write to one is a write to all that share it.
    """
    function, sizes = program.function(facts), program.sizes
    if 0 in sizes:
        return lambda *_: _empty(program, function, seed)

    def over(*args: Tensor) -> tuple[Tensor, ...]:
        results = [
            function(*(_sample(a, i.dims, place, apart) for a, i in zip(args, program.inputs, strict=True)))
            for place in itertools.product(*map(range, sizes))
        ]
        stacked = [torch.stack(r).unflatten(0, sizes) for r in zip(*results, strict=True)]
        last = list(reversed(range(len(sizes))))
        return tuple(s.permute(*range(len(sizes), s.ndim), *last) if program.out_dim else s for s in stacked)

    return over


def _sample(x: Tensor, dims: tuple[int | None, ...], place: tuple[int, ...], apart: bool) -> Tensor:
    x = x.clone() if apart and any(d is not None for d in dims) else x
    for d, k in zip(dims, place, strict=True):
        x = x if d is None else x.select(d, k)
    return x


def _empty(program: Program, function: Callable[..., Any], seed: int) -> tuple[Tensor, ...]:
    one = [i.sample(tuple(max(n, 1) for n in program.sizes), seed) for i in program.inputs]
    sizes, last = program.sizes, program.out_dim == -1
    return tuple(o.new_empty((*o.shape, *reversed(sizes)) if last else (*sizes, *o.shape)) for o in function(*one))


def _outputs(program: Program, run: Callable[..., Any], seed: int, mode: str) -> list[Tensor]:
    """Return the results, and gradients or the inputs as the program leaves them."""
    values = program.values(seed)
    leaves = []
    if mode == "gradients":
        leaves = [v.requires_grad_() for v in values if v.is_floating_point() or v.is_complex()]
        values = [v.clone() if v.requires_grad else v for v in values]
    try:
        out = [*run(*values)]
        total = sum((_weighted(o) for o in out if o.requires_grad), torch.zeros((), requires_grad=True))
        gradients = torch.autograd.grad(total, leaves, materialize_grads=True) if leaves else ()
    except Exception as error:
        raise Raised(error, program) from error
    return [*out, *(gradients if mode == "gradients" else values)]


def _weighted(o: Tensor) -> Tensor:
    """Return a sum in which no two elements count the same."""
    weight = torch.linspace(0.5, 1.5, max(o.numel(), 1), dtype=torch.float64)[: o.numel()].reshape(o.shape)
    return ((o * weight).abs() if o.is_complex() else o.double() * weight).sum()


def _agree(loop: list[Any], mapped: list[Any], sizes: tuple[int, ...]) -> bool:
    """Tell whether what was learned of memory is what each sample would learn; samples that differ count as well."""
    count = torch.Size(sizes).numel()
    each = [loop[k : k + len(loop) // count] for k in range(0, len(loop), max(len(loop) // count, 1))]
    return any(a != b for a, b in itertools.pairwise(each)) or not each or mapped == each[0]


def _named(program: Program, found: str) -> str:
    """Say of which tensor a difference is."""
    number = int(re.match(r"output (\d+)", found)[1]) if found.startswith("output") else 0  # type: ignore[index]
    names = [*program.returns, *(f"{i.name} after the call, or its gradient" for i in program.inputs)]
    return f"{names[number]}: {found.partition(': ')[2]}"
