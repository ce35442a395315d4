"""`compile`: programs captured as they are needed, one for each kind of arguments."""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from ..errors import CaptureError, CaptureWarning, function_name
from ..levels import tree
from ..levels.stack import current_levels
from ..torch_compat import autocast
from ..torch_compat.eval_frame import graph_break
from ..torch_compat.functorch import transforms_active
from .backends import hand_over
from .capture import record
from .program import Program
from .traits import ambient, traits

__all__ = ["compile"]


class CacheInfo(NamedTuple):
    """What a compiled function has done: calls that a program answered, captures, kept programs and their bound.

    ``uncaptured`` is the number of kinds of arguments for which the function runs as it is.
    """

    hits: int
    misses: int
    maxsize: int
    currsize: int
    uncaptured: int


@graph_break
def compile(
    vmapped: Callable[..., Any],
    backend: str | Callable[..., Any] = "eager",
    *,
    cache_size: int = 64,
    uncapturable: Literal["warn", "error"] = "warn",
) -> Callable[..., Any]:
    """Return a function that runs a mapped function by its captured programs.

    The first call with arguments of a kind runs the function and captures a program (see `capture`, also for what is
    baked in); later ones replay it. Arguments are of one kind if they agree in structure, shapes, strides, dtypes,
    devices, ``requires_grad`` and Python values, and so do grad mode, inference mode, autocast, and the default dtype.

    Args:
        vmapped: a function made by `vmap`, or one that calls such functions.
        backend: ``"eager"`` replays the operations in Python; ``"inductor"``, or any other backend of torch.compile
            by name or as a function ``(graph_module, example_inputs) -> callable``, compiles them.
        cache_size: how many programs are kept; the one not used for longest goes first.
        uncapturable: what to do where no program can be captured, since the function reads values of tensors or
            the like: ``"warn"`` once, and run the function itself in every call; or raise the CaptureError.

    Returns:
        The function, with ``cache_info()`` and ``cache_clear()``.

    Examples:
        >>> import torch
        >>> from vmap_core import compile, vmap
        >>> dot = compile(vmap(torch.dot))
        >>> dot(torch.ones(4, 3), torch.ones(4, 3))
        tensor([3., 3., 3., 3.])
        >>> dot(torch.ones(2, 3), torch.ones(2, 3))
        tensor([3., 3.])
        >>> dot.cache_info().currsize
        2
    """
    if cache_size < 1:
        raise ValueError(f"compile: cache_size must be at least 1, got {cache_size}")
    if uncapturable not in ("warn", "error"):
        raise ValueError(f"compile: uncapturable must be 'warn' or 'error', got {uncapturable!r}")
    cache = _Cache(vmapped, backend, cache_size, uncapturable == "error")

    @functools.wraps(vmapped)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        cache.calls += 1
        count, replay = cache.latest
        if len(args) == count and not kwargs:
            return replay(*args)
        return cache.call(args, kwargs)

    compiled.cache_info = cache.info  # type: ignore[attr-defined]
    compiled.cache_clear = cache.clear  # type: ignore[attr-defined]
    return graph_break(compiled)


class _Cache:
    """The programs of one function.

    Attributes:
        calls: number of calls so far.
        latest: the number of arguments and the replay, which checks them, of the program used last; -1 if it does not
            take its arguments as they come.
        latest_tree: what takes its arguments apart, and the replay.
    """

    latest: tuple[int, Callable[..., Any]]

    def __init__(self, func: Callable[..., Any], backend: Any, size: int, strict: bool) -> None:
        self.func, self.backend, self.size, self.strict = func, backend, size, strict
        self.warned = False
        self.clear()

    def clear(self) -> None:
        """Forget all programs."""
        self.calls = self.misses = 0
        self.latest = -1, self.func
        self.latest_tree: tuple[Callable[..., Any], Callable[..., Any]] = (lambda args, kwargs: None), self.func
        self.entries: OrderedDict[Any, tuple[Program, Callable[..., Any]] | None] = OrderedDict()

    def info(self) -> CacheInfo:
        """Return the counts."""
        uncaptured = sum(entry is None for entry in self.entries.values())
        return CacheInfo(self.calls - self.misses, self.misses, self.size, len(self.entries) - uncaptured, uncaptured)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call whose arguments the latest program does not take as they come."""
        unpack, replay = self.latest_tree
        leaves = unpack(args, kwargs)
        return replay(*leaves) if leaves is not None else self.find(args, kwargs)

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call that the latest program did not: by another one, or by one to be captured."""
        if current_levels() or transforms_active():
            return self.func(*args, **kwargs)  # the outer transform sees the operations as they are
        leaves: list[Any] = []
        spec = tree.flatten((args, kwargs), leaves)
        key = (_hashable(spec), ambient(), *map(traits, leaves), *map(type, leaves))
        if key in self.entries:
            self.entries.move_to_end(key)
            entry = self.entries[key]
            if entry is None:
                self.misses += 1
                return self.func(*args, **kwargs)
            program, replay = entry
            if program.captured_fit():
                self.use(program, replay)
                return replay(*leaves)
        self.misses += 1
        made, out = record(self.func, args, kwargs, self.strict)
        if isinstance(made, CaptureError):
            self.warn(made)
            self.entries[key] = None
        else:
            run, takes = self.backed(made, leaves)
            replay = made.bind(run, takes, self._missed, spec)
            self.entries[key] = made, replay
            self.use(made, replay)
        if len(self.entries) > self.size:
            self.entries.popitem(last=False)
        return out

    def _missed(self, spec: Any, *leaves: Any) -> Any:
        """Answer a call with other leaves, or containers in their place, than the latest program's."""
        args, kwargs = tree.unflatten(spec, iter(leaves))
        return self.find(args, kwargs)

    def use(self, program: Program, replay: Callable[..., Any]) -> None:
        """Let a program answer the next call first."""
        self.latest = len(program.leaves) if program.flat else -1, replay
        self.latest_tree = program.unpack, replay

    def warn(self, error: CaptureError) -> None:
        """Say, once, that a function cannot be captured."""
        if not self.warned:
            self.warned = True
            warnings.warn(
                CaptureWarning(f"{error} {function_name(self.func)} runs without a program, at its usual speed."),
                stacklevel=4,
            )

    def backed(self, program: Program, leaves: list[Any]) -> tuple[Any, list[int] | None]:
        """Return what runs the program, and which of the leaves and captured tensors it takes; None for all."""
        holds_generator = any(type(c) is torch.Generator for c in vars(program.graph_module).values())
        switches = any(node.target is autocast.set_state for node in program.graph_module.graph.nodes)
        if self.backend == "eager" or holds_generator or switches:
            return program.graph_module, None
        return hand_over(program, self.backend, leaves)


def _hashable(spec: Any) -> Any:
    if isinstance(spec, list | tuple):
        return tuple(map(_hashable, spec))
    try:
        hash(spec)
    except TypeError:
        return repr(spec)
    return spec
