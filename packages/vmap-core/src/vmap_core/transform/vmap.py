"""The vmap transform: wrap the inputs, run the function once, unwrap the outputs.

Errors about arguments have the classes and texts of ``torch.func.vmap``, since its users match on them.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from types import NoneType
from typing import Any, Literal

from torch import Tensor

from ..errors import UnsupportedError, function_name, user_location
from ..levels import tree as _tree
from ..levels.layout import mapped
from ..levels.level import Level, Randomness
from ..levels.presence import presence
from ..levels.read import alive
from ..levels.stack import modes, restore
from ..levels.tensor import BatchedTensor, make_batched
from ..rulekit.packs import current_table
from ..torch_compat.bindings import emitter
from ..torch_compat.mode_stack import EnableTorchFunction, mode_at, overrides_off, pop_mode, push_mode
from ..torch_compat.tensors import TensorBase
from ..torch_compat.trees import tree_flatten
from .chunking import is_whole, run_in_chunks
from .python_random import FirstCall, code_of, looked_at
from .subclasses import overridden, refuse_overriding

__all__ = ["vmap"]


def vmap(
    func: Callable[..., Any],
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: Randomness = "error",
    *,
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
            inputs = _mapped(args, flat_dims, level)
            if inputs is not None:
                level.inputs = inputs
                out = _run(func, level, inputs, kwargs, out_dims)
                return out if first is None else first.checked(out)
        chunks = (chunk_size, memory_budget, progress)
        out = _general(func, in_dims, out_dims, randomness, chunks, axis_size, kw_in_dims or {}, args, kwargs)
        return out if first is None else first.checked(out)

    wrapped.__vmap__ = (func, in_dims, out_dims, randomness, axis_size, kw_in_dims or {})  # type: ignore[attr-defined]
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


def _mapped(args: tuple[Any, ...], dims: Iterable[int | None], level: Level) -> list[Any] | None:
    """Return the arguments as the level's, and tell it the batch size, if those to be mapped are tensors that agree on it.

    None sends the call the long way.
    """
    size = None
    inputs = []
    for a, d in zip(args, dims):  # noqa: B905  # dims may repeat for ever
        if d is not None:
            kind: Any = type(a)
            if not isinstance(a, Tensor):
                return None
            if kind is not Tensor and kind is not BatchedTensor and (a.is_nested or overridden(kind)):
                return None
            try:
                shape = a.shape
                n = shape[d]
            except (IndexError, RuntimeError):  # RuntimeError: a strided nested tensor has no shape
                return None
            if n != size and size is not None:
                return None
            size = n
            if not d and kind is Tensor and a.is_contiguous():  # as `mapped`, without the call
                a = make_batched(a, 0, level)
            else:
                a = mapped(a, d if d >= 0 else d + len(shape), level)
        inputs.append(a)
    if size is None:
        return None
    level.batch_size = size
    return inputs


def _general(
    func: Callable[..., Any], in_dims: Any, out_dims: Any, randomness: Randomness, chunks: tuple[Any, Any, bool],
    axis_size: int | None, kw_in_dims: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    _check_out_dims(out_dims, func)
    _check_in_dims(in_dims, func, args, axis_size, kw_in_dims)
    leaves: list[Any] = []
    spec = _tree.flatten(args, leaves)
    dims = _dims_of_leaves(func, "in_dims", in_dims, args, spec, leaves)
    mapped_kwargs = _mapped_kwargs(kw_in_dims, func, kwargs)
    kw_leaves: list[Any] = []
    kw_spec = _tree.flatten(mapped_kwargs, kw_leaves)
    if kw_in_dims:
        dims += _dims_of_leaves(func, "kw_in_dims", kw_in_dims, mapped_kwargs, kw_spec, kw_leaves)
        leaves += kw_leaves
    size = _batch_size(leaves, dims, axis_size)
    spec = _tree.without_dim(spec, dims[: _tree.count(spec)])

    def run(size: int, leaves: list[Any]) -> Any:
        level = Level(size, randomness, current_table(), func)
        level.inputs = [leaf if d is None else mapped(leaf, d, level) for leaf, d in zip(leaves, dims, strict=True)]
        inputs = iter(level.inputs)
        return _run(
            func, level, _tree.unflatten(spec, inputs), {**kwargs, **_tree.unflatten(kw_spec, inputs)}, out_dims
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
            out = _unwrap(out, out_dims, level)
        else:
            out = _unwrap_tree(out, out_dims, level)
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
    level.plans = {}
    level.inputs = level.gathered = ()
    restore(below, (level,))
    presence.leave(level)


def _unwrap(out: Any, out_dim: int | None, level: Level) -> Any:
    """Return one output as its physical value, the batch dim where it is wanted."""
    value, bdim = out, None
    if type(out) is BatchedTensor:
        value, bdim = (out._value, out._bdim) if out._level is level else (alive(out), None)
    if out_dim is None:
        if bdim is not None:
            raise ValueError(
                f"vmap({level.name}, ...): `{level.name}` can not return a BatchedTensor when out_dim is None"
            )
        return value
    if out is None:
        return None
    if not isinstance(value, Tensor):
        raise ValueError(
            f"vmap({level.name}, ...): `{level.name}` must only return Tensors, got type {type(out)}. "
            "Did you mean to set out_dims= to None for output?"
        )
    if bdim is None:
        value, bdim = value.expand(level.batch_size, *value.shape), 0
    return value if bdim == out_dim else value.movedim(bdim, int(out_dim))


def _unwrap_tree(out: Any, out_dims: Any, level: Level) -> Any:
    leaves: list[Any] = []
    spec = _tree.flatten(out, leaves)
    if isinstance(out_dims, tuple) and spec is None and len(out_dims) == 1:
        dims: list[Any] | None = list(out_dims)
    else:
        dims = _tree.broadcast(out_dims, spec)
    if dims is None:
        raise ValueError(
            f"vmap({level.name}, ..., out_dims={out_dims})(<inputs>): out_dims is not compatible with the structure "
            f"of `outputs`. out_dims has structure {tree_flatten(out_dims)[1]} but outputs has structure "
            f"{tree_flatten(out)[1]}."
        )
    spec = _tree.with_dim(spec, dims, level.batch_size, out_dims)
    return _tree.unflatten(spec, iter([_unwrap(o, d, level) for o, d in zip(leaves, dims, strict=True)]))


def _check_out_dims(out_dims: Any, func: Any) -> None:
    leaves: list[Any] = []
    _tree.flatten(out_dims, leaves)
    for leaf in leaves:
        if leaf is not None and not isinstance(leaf, int):
            raise ValueError(
                f"vmap({function_name(func)}, ..., out_dims={out_dims}): `out_dims` must be an int, None or a python "
                f"collection of ints representing where in the outputs the vmapped dimension should appear."
            )


def _check_in_dims(in_dims: Any, func: Any, args: tuple[Any, ...], axis_size: int | None, kw_in_dims: Any) -> None:
    extended = axis_size is not None or kw_in_dims
    if not isinstance(in_dims, int | tuple) and not (in_dims is None and extended):
        raise ValueError(
            f"vmap({function_name(func)}, in_dims={in_dims}, ...)(<inputs>): expected `in_dims` to be int or a "
            f"(potentially nested) tuple matching the structure of inputs, got: {type(in_dims)}."
        )
    if not args and not extended:
        raise ValueError(
            f"vmap({function_name(func)})(<inputs>): got no inputs. Maybe you forgot to add inputs, or you are trying "
            f"to vmap over a function with no inputs. The latter is unsupported."
        )


def _mapped_kwargs(kw_in_dims: dict[str, Any], func: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    missing = [k for k in kw_in_dims if k not in kwargs]
    if missing:
        raise ValueError(
            f"vmap({function_name(func)}, kw_in_dims={kw_in_dims}, ...)(<inputs>): got no keyword argument "
            f"{', '.join(map(repr, missing))} to map over, only {sorted(kwargs)}."
        )
    return {k: kwargs[k] for k in kw_in_dims}


def _dims_of_leaves(func: Any, name: str, in_dims: Any, tree: Any, spec: Any, leaves: list[Any]) -> list[int | None]:
    """Return the in_dim of each leaf, and put live tensors in the place of dead ones.

    Raises:
        ValueError: the structures do not fit, or a dim is none of its leaf.
    """
    dims = _tree.broadcast(in_dims, spec)
    if dims is None:
        raise ValueError(
            f"vmap({function_name(func)}, {name}={in_dims}, ...)(<inputs>): in_dims is not compatible with the "
            f"structure of `inputs`. in_dims has structure {tree_flatten(in_dims)[1]} but inputs has structure "
            f"{tree_flatten(tree)[1]}."
        )
    for i, (leaf, dim) in enumerate(zip(leaves, dims, strict=True)):
        if dim is not None:
            leaves[i] = leaf = alive(leaf)
            problem = _problem(leaf, dim)
            if problem is not None:
                raise ValueError(f"vmap({function_name(func)}, {name}={in_dims}, ...)(<inputs>): {problem}")
            dims[i] = dim % leaf.dim()
    return dims


def _problem(leaf: Any, dim: Any) -> str | None:
    """Say why a leaf cannot be mapped over a dim."""
    if not isinstance(dim, int):
        return f"Got in_dim={dim} for an input but in_dim must be either an integer dimension or None."
    if not isinstance(leaf, Tensor):
        return (
            f"Got in_dim={dim} for an input but the input is of type {type(leaf)}. We cannot vmap over non-Tensor "
            f"arguments, please use None as the respective in_dim"
        )
    rank = leaf.dim()
    if dim < -rank or dim >= rank:
        return (
            f"Got in_dim={dim} for some input, but that input is a Tensor of dimensionality {rank} so expected in_dim "
            f"to satisfy -{rank} <= in_dim < {rank}."
        )
    return None


def _batch_size(leaves: list[Any], dims: list[Any], axis_size: int | None) -> int:
    mapped = [(leaf, d) for leaf, d in zip(leaves, dims, strict=True) if d is not None]
    if any(leaf.is_nested for leaf, _ in mapped):
        raise UnsupportedError(
            f"vmap: an input, at {user_location()}, is a nested tensor, whose samples differ in size. Instead: pad it "
            f"(torch.nested.to_padded_tensor), and map over the lengths beside it."
        )
    for leaf, _ in mapped:
        refuse_overriding(leaf)
    sizes = [leaf.shape[d] for leaf, d in mapped]
    if axis_size is not None:
        sizes.append(axis_size)
    if not sizes:
        raise ValueError("vmap: Expected at least one Tensor to vmap over")
    if any(size != sizes[0] for size in sizes):
        raise ValueError(
            f"vmap: Expected all tensors to have the same size in the mapped dimension, got sizes {sizes} for the "
            f"mapped dimension"
        )
    return sizes[0]
