"""A walk over the callables of ``torch._C``: called with the tensors of a mapped function, none may end the process.

A process is forked for each hundred calls. Where one dies, the calls that it takes are found by halving, and made with
plain tensors: a crash counts if only ours have it.
"""

from __future__ import annotations

import contextlib
import gc
import math
import mmap
import os
import random
import resource
import signal
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
import torch.fx.experimental.symbolic_shapes  # an error message may import it: not in each child

from tests.reliability.rows import Row, fresh, row
from vmap_core import vmap

BATCH = 100
PATIENCE = 10.0
"""Seconds that a call may take."""

_SPOILED = 3  # exit status of a child in which a call has left a state that no vmap runs in

# These take any tensor for one of functionalization's, and read what lies behind it: whether that crashes is chance, also
# with plain ones.
_UNCHECKED = {"torch._C._commit_update", "torch._C._replace_"}

# What a callable gets, by the tensors that there are.
PATTERNS: list[Callable[..., tuple[Any, ...]]] = [
    lambda x, y, z: (x,),
    lambda x, y, z: (x, y),
    lambda x, y, z: (x, y, z),
    lambda x, y, z: ([x, y],),
    lambda x, y, z: (x, [y, z]),
    lambda x, y, z: ([x, y], z),
    lambda x, y, z: ([x], [y], [z]),
    lambda x, y, z: (x, 1),
    lambda x, y, z: (1, x),
    lambda x, y, z: (x, 0, y),
    lambda x, y, z: (x, [0]),
    lambda x, y, z: ("text", x),
    lambda x, y, z: (x, None, y),
    lambda x, y, z: (x, True, True),
    lambda x, y, z: (x, y, z, x, y),
]
KINDS = ("batched", "made inside", "plain")


class Call(NamedTuple):
    """One call: what is called, a pattern, and the kinds and numbers of dims of three tensors."""

    name: str
    pattern: int
    kinds: tuple[str, ...]
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        """Return it as one would write it."""
        shown = [f"{kind} {rank}-d" for kind, rank in zip(self.kinds, self.ranks, strict=True)]
        args = PATTERNS[self.pattern](*map(_Shown, shown))
        return f"{self.name}({', '.join(map(repr, args))})"


class _Shown(str):
    __repr__ = str.__str__


@dataclass
class Findings:
    """What a walk has found.

    Attributes:
        callables: how many were called.
        calls: how often.
        shared: calls that take the process down with plain tensors, too.
        own: those that only ours do, with the signal.
    """

    callables: int = 0
    calls: int = 0
    shared: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)


def callables() -> dict[str, Any]:
    """Return what there is to call in ``torch._C`` and its submodules, by name; of tensors also the methods."""
    found: dict[str, Any] = {}
    modules = [torch._C]
    for module in modules:  # grows meanwhile
        for name in dir(module):
            value = getattr(module, name, None)
            if isinstance(value, types.ModuleType):
                if value.__name__.startswith("torch._C") and value not in modules:
                    modules.append(value)
            elif callable(value):
                found[f"{module.__name__}.{name}"] = value
    for name in dir(torch._C._VariableFunctions):
        found[f"torch._C._VariableFunctions.{name}"] = getattr(torch._C._VariableFunctions, name)
    for name, value in vars(torch._C.TensorBase).items():
        found[f"torch._C.TensorBase.{name}"] = value if callable(value) else getattr(value, "__get__", None)
    return {name: value for name, value in sorted(found.items()) if callable(value) and name not in _UNCHECKED}


def choose(names: Sequence[str], seed: int, each: int) -> Iterator[Call]:
    """Iterate over calls in an order that the seed decides: ``each`` of a callable, in one go."""
    draw = random.Random(seed)
    for name in draw.sample(names, len(names)):
        patterns = draw.sample(range(len(PATTERNS)), min(each, len(PATTERNS)))
        for k in range(each):
            kinds = [draw.choice(KINDS[:2]) if k % 2 else "batched", *(draw.choice(KINDS) for _ in range(2))]
            yield Call(name, patterns[k % len(patterns)], tuple(kinds), tuple(draw.choice((0, 1, 2)) for _ in range(3)))


def tensor(kind: str, rank: int, x: Any) -> Any:
    """Return an argument, made of the mapped function's own, of shape (3, 3)."""
    shaped = x if rank == 2 else x[0] if rank == 1 else x[0, 0]
    return shaped.clone() if kind == "batched" else torch.ones((3,) * rank)


def perform(function: Any, call: Call, ours: bool, kept: list[Any]) -> None:
    """Make a call, and keep what it gives."""

    def f(x: Any) -> Any:
        args = PATTERNS[call.pattern](*(tensor(k, r, x) for k, r in zip(call.kinds, call.ranks, strict=True)))
        with contextlib.suppress(BaseException):
            kept.append(function(*args))
        return torch.ones(2)

    if ours:
        vmap(f, axis_size=2, randomness="different")(torch.arange(18.0).view(2, 3, 3))
    else:
        f(torch.arange(9.0).view(3, 3))


class Walk:
    """Makes calls in forked processes."""

    def __init__(self) -> None:
        """List the callables."""
        self.callables = callables()
        self.progress = mmap.mmap(-1, 8)

    def _work(self, calls: Sequence[Call], ours: bool) -> None:
        """Make the calls, as a child process."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        warnings.simplefilter("ignore")
        kept: list[Any] = []
        for i, call in enumerate(calls):
            self._note(i)
            try:
                perform(self.callables[call.name], call, ours, kept)
            except BaseException:
                os._exit(_SPOILED)
        for result in kept:
            with contextlib.suppress(BaseException):
                torch.add(result, 1)
        kept.clear()
        gc.collect()
        os._exit(0)

    def _note(self, i: int) -> None:
        self.progress[:8] = i.to_bytes(8, "little")

    def _at(self) -> int:
        return int.from_bytes(self.progress[:8], "little")

    def run(self, calls: Sequence[Call], ours: bool = True) -> tuple[int, int]:
        """Make calls in a child process; return its status (negative: a signal) and the call that it came to."""
        self._note(0)
        child = os.fork()
        if not child:
            try:
                self._work(calls, ours)
            finally:
                os._exit(_SPOILED)
        at, since = 0, time.monotonic()
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), self._at()
            if self._at() != at:
                at, since = self._at(), time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return 0, at  # it waits for something, and would with plain tensors
            time.sleep(0.002)

    def culprits(self, calls: Sequence[Call]) -> Sequence[Call]:
        """Return the few of these calls, which end a process, that still do; all of them if they do not again."""
        size = 1
        while size < len(calls) and self.run(calls[-size:])[0] >= 0:
            size *= 2
        calls = calls[-size:]
        k = 0
        while k < len(calls) and len(calls) > 1:  # leave out what need not be there
            rest = [*calls[:k], *calls[k + 1 :]]
            if self.run(rest)[0] < 0:
                calls = rest
            else:
                k += 1
        return calls

    def shared(self, calls: Sequence[Call]) -> bool:
        """Tell whether plain tensors end the process, too: in the same calls, or in the last with another pattern.

        A batched tensor is a sequence to pybind11, a plain one is not: what crashes for one does so for a list of the other.
        """
        others = ([calls[-1]._replace(pattern=p)] for p in range(len(PATTERNS)))
        return any(self.run(tried, ours=False)[0] < 0 for tried in [calls, *others])

    def walk(self, calls: Iterator[Call], seconds: float) -> Findings:
        """Make calls until there are none, or the time is over."""
        findings, end = Findings(), time.monotonic() + seconds
        names, dead = set(), set()
        waiting: list[Call] = []
        there_are_more = True
        with tempfile.TemporaryDirectory() as folder, _in_folder(folder):
            while time.monotonic() < end:
                while there_are_more and len(waiting) < BATCH:
                    call = next(calls, None)
                    there_are_more = call is not None
                    if call is not None and call.name not in dead:
                        waiting.append(call)
                if not waiting:
                    break
                batch, waiting = waiting[:BATCH], waiting[BATCH:]
                status, at = self.run(batch)
                done = batch if status == 0 and at == len(batch) - 1 else batch[: at + 1]
                waiting = [*batch[len(done) :], *waiting]
                findings.calls += len(done)
                names |= {call.name for call in done}
                if status < 0:
                    calls_needed = self.culprits(done)
                    name = calls_needed[-1].name
                    dead.add(name)
                    text = f"{'; '.join(map(str, calls_needed))}: {signal.Signals(-status).name}"
                    (findings.shared if self.shared(calls_needed) else findings.own).append(text)
                    waiting = [call for call in waiting if call.name not in dead]
        findings.callables = len(names)
        return findings


@contextlib.contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    """Work in a folder of its own: a call may write files."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def walk(seconds: float | None, seed: int = 0, each: int = 22, pattern: str = "") -> dict[str, Any]:
    """Walk for so many seconds, or to the end, and return the `Findings` as a dict.

    Args:
        seconds: when to stop, at the latest.
        seed: decides on the order of the callables, and on their arguments.
        each: calls of a callable.
        pattern: only callables whose name holds it.
    """
    torch.set_num_threads(1)
    vmap(torch.sin)(torch.ones(2))  # the packs are there before the first fork
    gc.freeze()  # a child's collections look at what is its own
    steps = Walk()
    names = [name for name in steps.callables if pattern in name]
    return asdict(steps.walk(choose(names, seed, each), math.inf if seconds is None else seconds))


def rows(quick: bool, seconds: float | None = None, seed: int = 0) -> Iterator[Row]:
    """Iterate over the rows: one."""
    found = fresh(walk, 20 if quick else seconds, seed)
    tried = "callables of torch._C and its submodules, with tensors of a mapped function"
    if "own" not in found:  # the walk itself has ended
        yield row(tried, 0, found, "")
        return
    yield row(
        f"{found['callables']:,} {tried}", found["calls"], {f"crash: {text}": 1 for text in found["own"]},
        f"no crash that plain tensors do not have ({len(found['shared'])} callables end the process with both)",
    )  # fmt: skip
