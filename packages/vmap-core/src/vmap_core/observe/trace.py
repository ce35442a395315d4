"""What a mapped run does, written down: a table whose plans note each operation. Without one, nothing looks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..dispatch.plan import Plan, Served
from ..dispatch.planner import call_inherent
from ..errors import user_location
from ..levels.containers import leaves
from ..levels.layout import same_storage
from ..levels.stack import physically
from ..levels.tensor import BatchedTensor
from ..rulekit import packs
from ..rulekit.loop import listener
from ..rulekit.rule import Rule, Table, TableLike
from ..torch_compat.mode_stack import DisableTorchFunction, stack_size
from .names import kept, name_of, physical


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of an operation.

    Attributes:
        shape: its shape for one sample.
        physical: its shape with all batch dims in.
        bdim: where the batch dim is, or None.
        dtype: its dtype.
    """

    shape: tuple[int, ...]
    physical: tuple[int, ...]
    bdim: int | None
    dtype: torch.dtype


@dataclass
class Operation:
    """One operation at one level.

    Attributes:
        name: what was called.
        level: the mapped function's name.
        depth: how many levels are outside this one.
        pack: the pack whose rule served it, or how else it ran.
        rule: where the rule is, as ``module.function``.
        inputs: its tensors, those in lists too.
        outputs: what it returned.
        location: ``file:line`` of the user's code.
        seconds: time taken, parts included.
        nbytes: memory that its results own.
        loop: what the warning says, if it ran once per sample.
        error: the exception that it raised.
        parts: operations made by its rule, or inside it.
        results: copies of the tensors returned with their batch dims, if they are kept (see `recording`).
    """

    name: str
    level: str
    depth: int
    location: str
    inputs: list[TensorInfo]
    pack: str = ""
    rule: str = ""
    outputs: list[TensorInfo] = field(default_factory=list)
    seconds: float = 0.0
    nbytes: int = 0
    loop: str | None = None
    error: BaseException | None = None
    parts: list[Operation] = field(default_factory=list)
    results: list[Any] = field(default_factory=list, repr=False)

    @property
    def own_seconds(self) -> float:
        """Time taken without the parts."""
        return max(self.seconds - sum(p.seconds for p in self.parts), 0.0)

    def walk(self, indent: int = 0) -> Iterator[tuple[int, Operation]]:
        """Yield the operation and its parts, each with how deep it lies."""
        yield indent, self
        for part in self.parts:
            yield from part.walk(indent + 1)


class Trace:
    """The operations of a run, in order.

    Attributes:
        operations: those that the mapped function called; the others are their parts.
    """

    def __init__(self, keep: bool) -> None:
        """Begin; ``keep`` keeps the results."""
        self.operations: list[Operation] = []
        self.keep = keep
        self._open: list[Operation] = []
        self._planning = 0.0  # time spent on making plans, which later calls do not spend

    def run(self, func: Any, plan: Plan, level: Any, args: Any, kwargs: Any) -> Any:
        """Run a call by its plan, and write down what it does."""
        operation = Operation(
            name_of(func),
            level.name,
            stack_size(),
            user_location(),
            _describe(args, kwargs, level),
        )
        siblings = self._open[-1].parts if self._open else self.operations
        siblings.append(operation)
        self._open.append(operation)
        planning, start = self._planning, time.perf_counter()
        try:
            out = plan.run(level, args, kwargs)
        except BaseException as error:
            operation.error = error
            raise
        finally:
            operation.seconds = time.perf_counter() - start - (self._planning - planning)
            if not operation.pack:  # else `inner` has told
                operation.pack, operation.rule = _told(plan.served)
            self._open.pop()
        start = time.perf_counter()
        operation.outputs = _describe(out, {}, level)
        operation.nbytes = _new_bytes(out, (args, kwargs))
        if self.keep:
            operation.results = [kept(x, level) for x in _tensors(out)]
        name = operation.name
        writes = name.endswith(("=", "setitem__")) or (name.endswith("_") and not name.endswith("__"))
        if not (operation.outputs or operation.parts or operation.loop or writes):
            siblings.remove(operation)  # a question about a tensor, such as its dtype
        self._planning += time.perf_counter() - start
        return out

    def inner(self, plan: Plan, level: Any, args: Any, kwargs: Any) -> Any:
        """Run the plan that the types in a list have chosen: the same operation."""
        if self._open:
            self._open[-1].pack, self._open[-1].rule = _told(plan.served)
        return plan.run(level, args, kwargs)

    def looped(self, op: Any, message: str) -> None:
        """Note that the open operation runs in the loop."""
        if self._open:
            self._open[-1].loop = message


class TracedTable(TableLike):
    """A table like another one, whose plans write to a trace."""

    def __init__(self, table: Table, trace: Trace) -> None:
        """Take the rules over; the plans are made anew."""
        super().__init__(table)
        self.trace = trace
        self._since: float | None = None

    def rule(self, op: Any) -> Rule | None:
        """Look a rule up; that is the first step of making a plan."""
        self._since = self._since or time.perf_counter()
        return super().rule(op)

    def run_of(self, key: Any, run: Any, served: Served) -> Any:
        """Watch what runs a call."""
        plan = Plan(run, served)
        if self._since is not None:
            self.trace._planning += time.perf_counter() - self._since
            self._since = None
        trace, func = self.trace, key[0]
        if func is call_inherent or isinstance(func, tuple):

            def watched(level: Any, args: Any, kwargs: Any) -> Any:
                return trace.inner(plan, level, args, kwargs)
        else:

            def watched(level: Any, args: Any, kwargs: Any) -> Any:
                return trace.run(func, plan, level, args, kwargs)

        return watched


@contextlib.contextmanager
def recording(keep: bool = False) -> Iterator[Trace]:
    """Write down what mapped functions do within a ``with`` block, in this thread.

    Args:
        keep: keep copies of the results of operations, too.
    """
    trace = Trace(keep)
    table = TracedTable(packs.current_table(), trace)
    with packs.table_in_force(table), listener(trace.looped):
        yield trace


def _told(served: Served) -> tuple[str, str]:
    """Return the pack, or in words how a call runs, and where the rule is."""
    return served.pack, "" if served.rule is None else served.rule.place


def _tensors(x: Any) -> Iterator[Any]:
    return (a for a in leaves(x) if type(a) is BatchedTensor or isinstance(a, Tensor))


def _shape(x: Any) -> tuple[int, ...]:
    try:
        return tuple(physically(lambda t: t.shape, x))
    except RuntimeError:  # nested tensors have none
        return ()


def _describe(args: Any, kwargs: Any, level: Any) -> list[TensorInfo]:
    found = []
    for x in _tensors((args, kwargs)):
        bdim = x._bdim if type(x) is BatchedTensor and x._level is level else None
        found.append(TensorInfo(_shape(x), _shape(physical(x)), bdim, physical(x).dtype))
    return found


def _new_bytes(out: Any, given: Any) -> int:
    before = list(_tensors(given))
    total = 0
    for x in _tensors(out):
        plain = physical(x)
        if plain.layout == torch.strided and not any(same_storage(plain, b) for b in before):
            with DisableTorchFunction():
                try:
                    total += plain.untyped_storage().nbytes()
                except RuntimeError:  # a wrapper without memory
                    continue
    return total
