"""The vmap transform: wrap the inputs, run the function once, unwrap the outputs.

Errors about arguments have the classes and texts of ``torch.func.vmap``, since its users match on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from . import _tree
from ._chunking import run_in_chunks
from ._level import Level, Randomness, pop_level, push_level
from ._packs import current_table
from ._tensor import BatchedTensor

__all__ = ["vmap"]


def vmap(
    func: Callable[..., Any],
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: Randomness = "error",
    *,
    chunk_size: int | None = None,
    axis_size: int | None = None,
    kw_in_dims: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Map a function of one sample over a batch dim of its inputs.

    The function runs once, on tensors that hide their batch dim; every PyTorch operation it calls is replaced by one
    batched operation. The result equals the Python loop over the batch, or an error is raised.

    Args:
        func: takes tensors, or nested containers of them, of one sample; returns tensors or containers of them, also
            NamedTuples, ``torch.return_types`` and dataclasses. None in an output passes through.
        in_dims: the dim to map over, for every input or, as a tuple nested like the inputs, for each; None for an
            input that all samples share. Keyword arguments are shared (see ``kw_in_dims``).
        out_dims: where the batch dim is to be in the outputs; None for an output that does not depend on the sample.
        randomness: what a random operation does: ``"error"``, ``"different"`` (one draw of the batched shape) or
            ``"same"`` (one draw of the sample's shape, shared by all samples).
        chunk_size: map this many samples at a time, to bound memory. Under ``randomness="different"`` each chunk makes
            its own draws, so the numbers are not those of an unchunked call.
        axis_size: the number of samples, for a function without mapped inputs.
        kw_in_dims: in_dims for keyword arguments, by name.

    Returns:
        The function of batches.

    Raises:
        ValueError: in_dims or out_dims do not fit, sizes differ, or there is nothing to map over.
        RuntimeError: the randomness is none of the three.
        VmapError: an operation inside cannot be mapped; it says which, where, and what to do instead.

    Example:
        >>> import torch
        >>> from vmap_core import vmap
        >>> x, y = torch.ones(4, 3), torch.arange(3.0)
        >>> vmap(torch.dot, in_dims=(0, None))(x, y)
        tensor([3., 3., 3., 3.])

    See https://docs.pytorch.org/docs/stable/generated/torch.func.vmap.html for the function this one takes after.
    """
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(f"Only allowed values for randomness are 'error', 'different', or 'same'. Got {randomness}")
    if not (chunk_size is None or chunk_size > 0):
        raise ValueError(f"vmap: chunk_size should be None or greater than 0. (got {chunk_size})")
    simple = type(in_dims) is int and type(out_dims) is int and chunk_size is axis_size is kw_in_dims is None
    name = _name(func)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if simple and args:
            size = _common_size(args, in_dims)
            if size is not None:
                level = Level(size, randomness, current_table(), name)
                inputs = [BatchedTensor(a, in_dims if in_dims >= 0 else in_dims % a.ndim, level) for a in args]
                return _run(func, level, inputs, kwargs, out_dims)
        return _general(
            func, name, in_dims, out_dims, randomness, chunk_size, axis_size, kw_in_dims or {}, args, kwargs
        )

    return wrapped


def _common_size(args: tuple[Any, ...], in_dim: int) -> int | None:
    """Return the batch size if all arguments are tensors that agree on it; None sends the call the long way."""
    size = None
    for a in args:
        if not isinstance(a, Tensor):
            return None
        shape = a.shape
        if not -len(shape) <= in_dim < len(shape) or (size is not None and shape[in_dim] != size):
            return None
        size = shape[in_dim]
    return size


def _general(
    func: Callable[..., Any], name: str, in_dims: Any, out_dims: Any, randomness: Randomness, chunk_size: int | None,
    axis_size: int | None, kw_in_dims: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    _check_out_dims(out_dims, name)
    _check_in_dims(in_dims, name, args, axis_size, kw_in_dims)
    leaves: list[Any] = []
    spec = _tree.flatten(args, leaves)
    dims = _dims_of_leaves(in_dims, spec, name, args)
    mapped_kwargs = {k: kwargs[k] for k in kw_in_dims if k in kwargs}
    kw_spec = _tree.flatten(mapped_kwargs, leaves)
    if mapped_kwargs:
        dims += _dims_of_leaves({k: kw_in_dims[k] for k in mapped_kwargs}, kw_spec, name, mapped_kwargs)
    for i, (leaf, dim) in enumerate(zip(leaves, dims, strict=True)):
        dims[i] = _checked_dim(leaf, dim, name, in_dims)
    size = _batch_size(leaves, dims, axis_size)

    def run(size: int, leaves: list[Any]) -> Any:
        level = Level(size, randomness, current_table(), name)
        inputs = iter(
            [leaf if d is None else BatchedTensor(leaf, d, level) for leaf, d in zip(leaves, dims, strict=True)]
        )
        return _run(
            func, level, _tree.unflatten(spec, inputs), {**kwargs, **_tree.unflatten(kw_spec, inputs)}, out_dims
        )

    if chunk_size is None:
        return run(size, leaves)
    return run_in_chunks(run, size, chunk_size, leaves, dims, out_dims, randomness)


def _run(func: Callable[..., Any], level: Level, args: Any, kwargs: dict[str, Any], out_dims: Any) -> Any:
    """Call the function at a level and take the batch dim off its outputs' hiding."""
    push_level(level)
    try:
        try:
            out = func(*args, **kwargs)
        finally:
            pop_level()
        if type(out_dims) is int and isinstance(out, Tensor):
            return _unwrap(out, out_dims, level)
        return _unwrap_tree(out, out_dims, level)
    finally:
        level.active = False


def _unwrap(out: Any, out_dim: int | None, level: Level) -> Any:
    """Return one output as its physical value, the batch dim where it is wanted."""
    value, bdim = (out._value, out._bdim) if type(out) is BatchedTensor and out._level is level else (out, None)
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
    return value if bdim == out_dim else value.movedim(bdim, out_dim)


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
    return _tree.unflatten(spec, iter([_unwrap(o, d, level) for o, d in zip(leaves, dims, strict=True)]))


def _check_out_dims(out_dims: Any, name: str) -> None:
    leaves: list[Any] = []
    _tree.flatten(out_dims, leaves)
    for leaf in leaves:
        if leaf is not None and not isinstance(leaf, int):
            raise ValueError(
                f"vmap({name}, ..., out_dims={out_dims}): `out_dims` must be an int, None or a python collection of "
                f"ints representing where in the outputs the vmapped dimension should appear."
            )


def _check_in_dims(in_dims: Any, name: str, args: tuple[Any, ...], axis_size: int | None, kw_in_dims: Any) -> None:
    extended = axis_size is not None or kw_in_dims
    if not isinstance(in_dims, int | tuple) and not (in_dims is None and extended):
        raise ValueError(
            f"vmap({name}, in_dims={in_dims}, ...)(<inputs>): expected `in_dims` to be int or a (potentially nested) "
            f"tuple matching the structure of inputs, got: {type(in_dims)}."
        )
    if not args and not extended:
        raise ValueError(
            f"vmap({name})(<inputs>): got no inputs. Maybe you forgot to add inputs, or you are trying to vmap over a "
            f"function with no inputs. The latter is unsupported."
        )


def _dims_of_leaves(in_dims: Any, spec: Any, name: str, args: Any) -> list[Any]:
    dims = _tree.broadcast(in_dims, spec)
    if dims is None:
        raise ValueError(
            f"vmap({name}, in_dims={in_dims}, ...)(<inputs>): in_dims is not compatible with the structure of "
            f"`inputs`. in_dims has structure {tree_flatten(in_dims)[1]} but inputs has structure "
            f"{tree_flatten(args)[1]}."
        )
    return dims


def _checked_dim(leaf: Any, dim: Any, name: str, in_dims: Any) -> int | None:
    """Return a leaf's dim, non-negative.

    Raises:
        ValueError: it is no dim of that leaf.
    """
    where = f"vmap({name}, in_dims={in_dims}, ...)(<inputs>): "
    if dim is None:
        return None
    if not isinstance(dim, int):
        raise ValueError(
            f"{where}Got in_dim={dim} for an input but in_dim must be either an integer dimension or None."
        )
    if not isinstance(leaf, Tensor):
        raise ValueError(
            f"{where}Got in_dim={dim} for an input but the input is of type {type(leaf)}. We cannot vmap over "
            f"non-Tensor arguments, please use None as the respective in_dim"
        )
    rank = leaf.dim()
    if dim < -rank or dim >= rank:
        raise ValueError(
            f"{where}Got in_dim={dim} for some input, but that input is a Tensor of dimensionality {rank} so expected "
            f"in_dim to satisfy -{rank} <= in_dim < {rank}."
        )
    return dim % rank


def _batch_size(leaves: list[Any], dims: list[Any], axis_size: int | None) -> int:
    sizes = [leaf.shape[d] for leaf, d in zip(leaves, dims, strict=True) if d is not None]
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


def _name(func: Any) -> str:
    """Return what messages call a function."""
    if hasattr(func, "__name__"):
        return str(func.__name__)
    if isinstance(func, functools.partial):
        return f"functools.partial({_name(func.func)}, ...)"
    return repr(func)
