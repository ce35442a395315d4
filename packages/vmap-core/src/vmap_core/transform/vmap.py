"""The vmap transform: wrap the inputs, run the function once, unwrap the outputs.

Errors about arguments have the classes and texts of ``torch.func.vmap``, since its users match on them.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Literal

from torch import Tensor

from ..levels import tree as _tree
from ..levels.level import Level, Randomness
from ..levels.presence import presence
from ..levels.stack import modes, restore
from ..levels.tensor import BatchedTensor
from ..rulekit.packs import current_table
from ..torch_compat.bindings import emitter
from ..torch_compat.eval_frame import graph_break
from ..torch_compat.mode_stack import EnableTorchFunction, mode_at, overrides_off, pop_mode, push_mode
from ..torch_compat.tensors import TensorBase
from .chunking import is_whole, run_in_chunks
from .control_flow import in_steps
from .inputs import batch_size, check_in_dims, check_out_dims, dims_of_leaves, mapped_args, mapped_kwargs, mapped_leaves
from .outputs import unwrapped, unwrapped_tree
from .python_random import FirstCall, code_of, looked_at

__all__ = ["vmap"]


def vmap(
    func: Callable[..., Any],
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: Randomness = "error",
    *,
    control_flow: Literal["error", "split"] = "error",
    chunk_size: int | Literal["auto"] | None = None,
    axis_size: int | None = None,
    kw_in_dims: dict[str, Any] | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Callable[..., Any]:
    """Map a function of one sample over a batch dim of its inputs.

    The function runs once, on tensors that hide their batch dim; every PyTorch operation it calls is replaced by one
    batched operation. The result equals the Python loop over the batch, or an error is raised.

    Args:
        func: takes tensors, or nested containers of them, of one sample; returns tensors or containers of them, also
            NamedTuples, ``torch.return_types``, dataclasses, and subclasses of list, tuple and dict. None in an output
            passes through.
        in_dims: the dim to map over, for every input or, as a tuple nested like the inputs, for each; None for an
            input that all samples share. Keyword arguments are shared (see ``kw_in_dims``).
        out_dims: where the batch dim is to be in the outputs; None for an output that does not depend on the sample.
        randomness: what a random operation does: ``"error"``, ``"different"`` (one draw of the batched shape) or
            ``"same"`` (one draw of the sample's shape, shared by all samples).
        control_flow: what ``if``, ``while`` and the like do where samples differ: ``"error"``, or ``"split"``: the samples that go one way
            go on together (this needs vmap-control-flow, whose documentation says what it takes).
        chunk_size: map this many samples at a time, to bound memory. Under ``randomness="different"`` each chunk makes
            its own draws, so the numbers are not those of an unchunked call; under ``"same"`` all chunks share theirs.
            ``"auto"`` measures a first chunk of 8 samples, goes on with as many as fit into ``memory_budget``, and with
            half as many where memory runs out all the same (the function then runs once more for that chunk).
        axis_size: the number of samples, for a function without mapped inputs.
        kw_in_dims: in_dims for keyword arguments, by name.
        memory_budget: bytes that a chunk may take with ``chunk_size="auto"``; by default half of what is free.
        progress: show a bar of chunks (needs tqdm).

    Returns:
        The function of batches.

    Raises:
        ValueError: in_dims or out_dims do not fit, sizes differ, or there is nothing to map over.
        RuntimeError: the randomness is none of the three.
        VmapError: an operation inside cannot be mapped; it says which, where, and what to do instead.

    Examples:
        >>> import torch
        >>> from vmap_core import vmap
        >>> x, y = torch.ones(4, 3), torch.arange(3.0)
        >>> vmap(torch.dot, in_dims=(0, None))(x, y)
        tensor([3., 3., 3., 3.])

    See https://docs.pytorch.org/docs/stable/generated/torch.func.vmap.html for the function this one takes after.
    """
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(f"Only allowed values for randomness are 'error', 'different', or 'same'. Got {randomness}")
    if not (chunk_size is None or chunk_size == "auto" or chunk_size > 0):
        raise ValueError(f"vmap: chunk_size should be None or greater than 0. (got {chunk_size})")
    if (progress and chunk_size is None) or (memory_budget is not None and chunk_size != "auto"):
        raise ValueError(
            f"vmap: progress=True needs a chunk_size, memory_budget needs chunk_size='auto'. (got chunk_size={chunk_size})"
        )
    if memory_budget is not None and not (is_whole(memory_budget) and memory_budget > 0):
        raise ValueError(
            f"vmap: memory_budget should be None or a whole number of bytes greater than 0, as 2**30 is. (got {memory_budget!r})"
        )
    if axis_size is not None and (axis_size := operator.index(axis_size)) < 0:
        raise ValueError(f"vmap: axis_size should be None or at least 0. (got {axis_size})")
    if kw_in_dims is not None and not isinstance(kw_in_dims, dict):
        raise ValueError(f"vmap: kw_in_dims should be None or a dict of in_dims by name. (got {kw_in_dims})")
    func = _callable_on_samples(func)
    if control_flow != "error":
        func = in_steps(func, control_flow)
    simple = type(out_dims) is int and chunk_size is axis_size is kw_in_dims is None
    flat_dims: Any = itertools.repeat(in_dims) if type(in_dims) is int else in_dims
    arity = len(in_dims) if type(in_dims) is tuple and all(type(d) in (int, NoneType) for d in in_dims) else None
    simple = simple and (type(in_dims) is int or arity is not None)

    code = code_of(func)
    key = None if randomness == "same" else id(code)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        first = None if key in looked_at else FirstCall(func, code)
        if simple and args and (arity is None or arity == len(args)):
            level = Level(0, randomness, current_table(), func)
            inputs = mapped_args(args, flat_dims, level)
            if inputs is not None:
                level.inputs = inputs
                out = _run(func, level, inputs, kwargs, out_dims)
                return out if first is None else first.checked(out)
        chunks = (chunk_size, memory_budget, progress)
        out = _general(func, in_dims, out_dims, randomness, chunks, axis_size, kw_in_dims or {}, args, kwargs)
        return out if first is None else first.checked(out)

    wrapped.__vmap__ = (func, in_dims, out_dims, randomness, axis_size, kw_in_dims or {})  # type: ignore[attr-defined]
    if control_flow != "error":  # no graph holds it
        return graph_break(wrapped)
    options = {
        "chunk_size": chunk_size, "axis_size": axis_size, "kw_in_dims": kw_in_dims, "memory_budget": memory_budget,
        "progress": progress,
    }  # fmt: skip
    # As `made_by` does, without the call.
    wrapped.__transform__ = (id(wrapped), (vmap, func, (in_dims, out_dims, randomness), options))  # type: ignore[attr-defined]
    return wrapped


def _callable_on_samples(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that takes samples too, for a method of Tensor taken from the class, or a partial of one."""
    if isinstance(func, functools.partial):
        inner = _callable_on_samples(func.func)
        return func if inner is func.func else functools.partial(inner, *func.args, **func.keywords)
    if getattr(func, "__objclass__", None) in (Tensor, TensorBase):
        return functools.wraps(func)(emitter(func))
    return func


def _general(
    func: Callable[..., Any], in_dims: Any, out_dims: Any, randomness: Randomness, chunks: tuple[Any, Any, bool],
    axis_size: int | None, kw_in_dims: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    check_out_dims(out_dims, func)
    check_in_dims(in_dims, func, args, axis_size, kw_in_dims)
    leaves: list[Any] = []
    sizes: list[int] = []
    spec = _tree.flatten(args, leaves)
    dims = dims_of_leaves(func, "in_dims", in_dims, args, spec, leaves, sizes)
    named = mapped_kwargs(kw_in_dims, func, kwargs)
    kw_leaves: list[Any] = []
    kw_spec = _tree.flatten(named, kw_leaves)
    spec = _tree.without_dim(spec, dims)
    if kw_in_dims:
        dims += dims_of_leaves(func, "kw_in_dims", kw_in_dims, named, kw_spec, kw_leaves, sizes)
        leaves += kw_leaves
    size = batch_size(sizes if axis_size is None else [*sizes, axis_size])

    def run(size: int, leaves: list[Any]) -> Any:
        level = Level(size, randomness, current_table(), func)
        level.inputs = mapped_leaves(leaves, dims, level)
        inputs = iter(level.inputs)
        given = _tree.unflatten(spec, inputs)
        return _run(
            func, level, given, {**kwargs, **_tree.unflatten(kw_spec, inputs)} if kw_leaves else kwargs, out_dims
        )

    chunk_size, memory_budget, progress = chunks
    if chunk_size is None:
        return run(size, leaves)
    return run_in_chunks(run, size, chunk_size, leaves, dims, out_dims, randomness, memory_budget, progress)


def _run(func: Callable[..., Any], level: Level, args: Any, kwargs: dict[str, Any], out_dims: Any) -> Any:
    """Call the function at a level and take the batch dim off its outputs' hiding."""
    if overrides_off():
        with EnableTorchFunction():  # type: ignore[no-untyped-call]
            return _run(func, level, args, kwargs, out_dims)
    below: Sequence[Any] = ()
    if level.depth:
        below = (mode_at(0),) if level.depth == 1 else tuple(map(mode_at, range(level.depth)))
        if type(below[-1]) is Level and not below[-1].active:  # left by a call that was interrupted
            below = modes()
            level.depth = len(below)
    try:
        presence.enter(level)
        push_mode(level)
        out = func(*args, **kwargs)
        if (top := pop_mode()) is not level:  # a mode of the user's is above it (``with`` in a suspended generator)
            push_mode(top)
            restore(below, (level,))
        if type(out_dims) is int and (type(out) is BatchedTensor or isinstance(out, Tensor)):
            out = unwrapped(out, out_dims, level)
        else:
            out = unwrapped_tree(out, out_dims, level)
        level.active = False
        level.inputs = ()  # they hold the level
        if level.gathered:
            level.gathered = ()
        presence.leave(level)
        return out
    except BaseException as error:
        try:
            _end(level, below)
        except BaseException:  # an interrupt, once more
            _end(level, below)
            raise
        if type(error) is TypeError and "doesn't apply to a 'BatchedTensor'" in str(error):  # CPython's
            error.add_note(
                "vmap: call a method on the tensor inside a mapped function: x.sum(), not torch.Tensor.sum(x)"
            )
        raise


def _end(level: Level, below: Sequence[Any]) -> None:
    """End a level whose function has raised, or that an interrupt has met, anywhere; again is harmless.

    PyTorch's own code, too, takes a mode off the stack and puts it back; after an interrupt that may come later than this.
    So the level has no plans any more: it hands on what it is given, until the next vmap takes it off.
    """
    level.active = False
    level.plans, level.ways = {}, {}
    level.inputs = level.gathered = ()
    restore(below, (level,))
    presence.leave(level)
