"""What a container is, and walking over what arguments and results hold.

Containers are lists, tuples, dicts and their subclasses, NamedTuples and values of ``torch.return_types``, dataclasses, and
the classes in PyTorch's registry of pytrees. Whatever looks for tensors in the arguments of a call goes by `leaves`,
`map_leaves` or `map_with_dims`; `tree` takes the inputs and outputs of mapped functions apart, by the same definition.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..torch_compat.trees import SUPPORTED_NODES
from .tensor import BatchedTensor

# Types that are no containers; not all of them: a short way. A module adds those that it meets often.
LEAVES: set[type] = {
    Tensor, BatchedTensor, Parameter, int, float, bool, complex, str, type(None), type(...), torch.dtype, torch.device,
    torch.layout, torch.memory_format, torch.Generator,
}  # fmt: skip


def take_apart(tree: Any) -> tuple[Any, Any, list[Any] | None]:
    """Return a container's type, what is needed to make it again, and its children; None for a leaf's children."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind, None, tree
    if kind is dict:
        return kind, list(tree), list(tree.values())
    if hasattr(kind, "n_sequence_fields"):  # a value of torch.return_types
        return kind, None, list(tree)
    take_apart = _functions(kind)
    if take_apart is not None:
        children, context = take_apart[0](tree)
        children = list(children)
        if isinstance(getattr(tree, "batch_size", None), torch.Size):
            context = Sized(context, tree.batch_size, all(_starts_with(c, tree.batch_size) for c in children))
            SIZED.add(kind)
        return kind, context, children
    if isinstance(tree, Tensor):
        return kind, None, None
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):  # a NamedTuple
        return kind, None, list(tree)
    if isinstance(tree, _BASES) and not isinstance(tree, torch.Size):
        return kind, _like(tree), list(tree.values() if isinstance(tree, dict) else tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = _Fields(f.name for f in dataclasses.fields(tree) if hasattr(tree, f.name))
        fields.instance = tree
        return kind, fields, [getattr(tree, name) for name in fields]
    return kind, None, None


def put_together(kind: Any, context: Any, children: list[Any]) -> Any:
    """Make a container again, from other children; the inverse of `take_apart`."""
    return _CLOSE.get(kind, _close_other)(kind, context, children)


# Containers that PyTorch's registry does not have, and what takes them apart and makes what a mapped function gets.
CONTAINERS: dict[type, tuple[Callable[[Any], tuple[list[Any], Any]], Callable[[list[Any], Any], Any]]] = {}


def _functions(kind: Any) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    node = SUPPORTED_NODES.get(kind)
    return CONTAINERS.get(kind) if node is None else (node.flatten_fn, node.unflatten_fn)


_BASES = (list, tuple, dict)


def keys_of(kind: Any, context: Any) -> Any:
    """Return a dict's keys, given what `take_apart` returned; None for another container."""
    if type(context) is Like:
        return context.keys
    if kind is dict or kind is OrderedDict:
        return context
    return context[1] if kind is defaultdict else None


@dataclasses.dataclass(frozen=True)
class Like:
    """The context of a subclass of list, tuple or dict.

    Attributes:
        instance: one, for what else it holds.
        keys: a dict's.
        told_apart: identifies the instance if it has attributes, which decide what it is, too.
    """

    instance: Any = dataclasses.field(compare=False)
    keys: tuple[Any, ...] | None
    told_apart: int | None


def _like(instance: Any) -> Like:
    keys = tuple(instance) if isinstance(instance, dict) else None
    return Like(instance, keys, id(instance) if getattr(instance, "__dict__", None) else None)


def _another(context: Like, children: list[Any]) -> Any:
    """Make another such instance with other children; the instance itself if they are its own."""
    old: Any = context.instance
    own = old if context.keys is None else old.values()
    if len(old) == len(children) and all(a is b for a, b in zip(own, children, strict=True)):
        return old
    if isinstance(old, tuple):
        new: Any = tuple.__new__(type(old), children)  # its own __new__ may take something else
        if context.told_apart is not None:
            new.__dict__.update(old.__dict__)
        return new
    changed: Any = copy.copy(old)
    if context.keys is None:
        list.__setitem__(changed, slice(None), children)
    else:
        dict.update(changed, zip(context.keys, children, strict=True))
    return changed


class _Fields(list[str]):
    """The fields that a dataclass instance has set, and the instance itself, for what else it holds."""

    instance: Any


@dataclasses.dataclass
class Sized:
    """The context of a container with leading dims of its own, common to all its tensors, as a TensorDict has them.

    Attributes:
        context: the container's own.
        size: its leading dims.
        whole: whether its tensors have these dims; a lazy stack keeps one of them apart.
    """

    context: Any
    size: torch.Size
    whole: bool


SIZED: set[type] = set()  # the kinds of such containers that have been met


def _starts_with(child: Any, size: torch.Size) -> bool:
    return not hasattr(child, "shape") or child.shape[: len(size)] == size


def _close_other(kind: Any, context: Any, children: list[Any]) -> Any:
    if type(context) is Sized:
        made = _functions(kind)[1](children, context.context)  # type: ignore[index]
        if made.batch_size != context.size:
            made.batch_size = context.size
        return made
    if hasattr(kind, "n_sequence_fields"):
        return kind(children)
    put_together = _functions(kind)
    if put_together is not None:
        return put_together[1](children, context)
    if hasattr(kind, "_fields"):
        return kind._make(children)
    if type(context) is Like:
        return _another(context, children)
    if isinstance(context, _Fields):
        old = context.instance
        if all(getattr(old, name) is child for name, child in zip(context, children, strict=True)):
            return old
        new = copy.copy(old)
        for name, child in zip(context, children, strict=True):
            object.__setattr__(new, name, child)
        return new
    return kind(children)


_CLOSE: dict[Any, Callable[[Any, Any, list[Any]], Any]] = {
    tuple: lambda kind, context, children: tuple(children),
    list: lambda kind, context, children: children,
    dict: lambda kind, context, children: dict(zip(context, children, strict=True)),
}


def rebuild(like: Any, items: list[Any]) -> Any:
    """Make a container like another one, from new children."""
    kind = type(like)
    if kind is list:
        return items
    return tuple(items) if kind is tuple else put_together(*take_apart(like)[:2], items)


def dims_like(like: Any, dims: list[Any]) -> Any:
    """Return the batch dims of a container's children as `map_with_dims` takes them: a list; for a dict, by key."""
    return dict(zip(like, dims, strict=True)) if isinstance(like, dict) else dims


def children(x: Any) -> Sequence[Any] | None:
    """Return what a container holds, or None for what is no container."""
    kind = type(x)
    if kind in LEAVES or kind is torch.Size:
        return None
    return x if kind is tuple or kind is list else take_apart(x)[2]


def leaves(x: Any) -> Iterator[Any]:
    """Iterate over the leaves of an argument or a result: itself, or what a container holds, at any depth.

    Containers are lists, tuples, dicts, their subclasses, NamedTuples, dataclasses, and classes registered with
    ``torch.utils._pytree``.

    Args:
        x: anything; ``(args, kwargs)`` for a whole call.
    """
    held = children(x)
    if held is None:
        yield x
        return
    for a in held:
        if type(a) in LEAVES:
            yield a
        else:
            yield from leaves(a)


def map_leaves(function: Callable[[Any], Any], x: Any) -> Any:
    """Return an argument or a result with each leaf exchanged for what a function makes of it, in the same containers."""
    kind = type(x)
    if kind in LEAVES or kind is torch.Size:
        return function(x)
    if kind is tuple or kind is list:  # short ways for what is commonest, here and below
        items = [function(a) if type(a) in LEAVES else map_leaves(function, a) for a in x]
        return items if kind is list else tuple(items)
    kind, context, held = take_apart(x)
    if held is None:
        return function(x)
    return put_together(kind, context, [map_leaves(function, a) for a in held])


def map_with_dims(function: Callable[[Any, Any], Any], x: Any, dims: Any) -> Any:
    """Do so with a function of a leaf and its batch dim.

    Args:
        function: called with each leaf and its dim.
        x: an argument or a result.
        dims: an int or None, for all leaves; or one entry for each child of a container, by key for a dict.
    """
    kind = type(x)
    if kind in LEAVES or kind is torch.Size:
        return function(x, dims)
    context, held = None, x
    if kind is not tuple and kind is not list:
        kind, context, held = take_apart(x)
        if held is None:
            return function(x, dims)
    if isinstance(dims, dict):
        dims = [dims[key] for key in x]
    elif not isinstance(dims, list | tuple):
        dims = [dims] * len(held)
    items = [
        function(a, d) if type(a) in LEAVES else map_with_dims(function, a, d) for a, d in zip(held, dims, strict=True)
    ]
    return tuple(items) if kind is tuple else put_together(kind, context, items)
