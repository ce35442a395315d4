"""Nested inputs and outputs: PyTorch's pytrees, and dataclasses.

An own flatten, since it runs on every call of a mapped function: tuples, lists and dicts take the short way, other
registered containers PyTorch's registry.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import SUPPORTED_NODES

from .tensor import BatchedTensor

_LEAVES = {Tensor, BatchedTensor, Parameter, int, float, bool, str, type(None)}  # some of them: a short way

# A leaf has the spec None; a container (kind, context, children's specs).
Spec = tuple[Any, Any, list[Any]] | None


def flatten(tree: Any, leaves: list[Any]) -> Spec:
    """Append the leaves of a tree to a list and return its structure."""
    if type(tree) in _LEAVES:
        leaves.append(tree)
        return None
    kind, context, children = _open(tree)
    if children is None:
        leaves.append(tree)
        return None
    return kind, context, [flatten(child, leaves) for child in children]


def unflatten(spec: Spec, leaves: Iterator[Any]) -> Any:
    """Make a tree of a structure from leaves, taken in order."""
    if spec is None:
        return next(leaves)
    kind, context, children = spec
    made = [next(leaves) if child is None else unflatten(child, leaves) for child in children]
    return _CLOSE.get(kind, _close_other)(kind, context, made)


def broadcast(prefix: Any, spec: Spec) -> list[Any] | None:
    """Return one entry of ``prefix`` for each leaf of a structure.

    Args:
        prefix: a tree that stops at, or above, the leaves: an entry counts for all leaves below its place.
        spec: the structure.

    Returns:
        The entries in the order of the leaves, or None if the structures do not agree.
    """
    kind, context, children = _open(prefix)
    if children is None:
        return [prefix] * count(spec)
    if spec is None or len(children) != len(spec[2]):
        return None
    if kind in _DICTS and spec[0] in _DICTS:  # these are compatible, and go by key
        by_key = dict(zip(_keys(kind, context), children, strict=True))
        keys = _keys(spec[0], spec[1])
        if by_key.keys() != set(keys):
            return None
        children = [by_key[key] for key in keys]
    elif kind is not spec[0] or (context != spec[1] and kind is not deque):
        return None
    out: list[Any] = []
    for child, child_spec in zip(children, spec[2], strict=True):
        part = broadcast(child, child_spec)
        if part is None:
            return None
        out += part
    return out


def count(spec: Spec) -> int:
    """Return the number of leaves of a structure."""
    return 1 if spec is None else sum([1 if child is None else count(child) for child in spec[2]])


def _open(tree: Any) -> tuple[Any, Any, list[Any] | None]:
    """Return a container's type, what is needed to make it again, and its children; None for a leaf's children."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind, None, tree
    if kind is dict:
        return kind, list(tree), list(tree.values())
    take_apart = _functions(kind)
    if take_apart is not None:
        children, context = take_apart[0](tree)
        children = list(children)
        if isinstance(getattr(tree, "batch_size", None), torch.Size):
            context = Sized(context, tree.batch_size, all(_starts_with(c, tree.batch_size) for c in children))
            _SIZED.add(kind)
        return kind, context, children
    if isinstance(tree, tuple) and (hasattr(tree, "_fields") or hasattr(kind, "n_sequence_fields")):
        return kind, None, list(tree)  # a NamedTuple, or a value of torch.return_types
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = _Fields(f.name for f in dataclasses.fields(tree) if hasattr(tree, f.name))
        fields.instance = tree
        return kind, fields, [getattr(tree, name) for name in fields]
    return kind, None, None


# Containers that PyTorch's registry does not have, and what takes them apart and makes what a mapped function gets.
CONTAINERS: dict[type, tuple[Callable[[Any], tuple[list[Any], Any]], Callable[[list[Any], Any], Any]]] = {}


def _functions(kind: Any) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    node = SUPPORTED_NODES.get(kind)
    return CONTAINERS.get(kind) if node is None else (node.flatten_fn, node.unflatten_fn)


_DICTS = {dict, OrderedDict, defaultdict}


def _keys(kind: Any, context: Any) -> Any:
    return context[1] if kind is defaultdict else context


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


_SIZED: set[type] = set()  # the kinds of such containers that have been met


def _starts_with(child: Any, size: torch.Size) -> bool:
    return not hasattr(child, "shape") or child.shape[: len(size)] == size


def without_dim(spec: Spec, dims: list[Any], outer: Any = None) -> Spec:
    """Return the structure of one sample's containers, given the mapped dim of every leaf.

    A dim behind those that a container's tensors have in common is none of its own. A container without leaves goes by
    what it is in, or by ``outer``.
    """
    return _resized(spec, iter(dims), lambda size, d: torch.Size(size[:d] + size[d + 1 :]), outer)


def with_dim(spec: Spec, dims: list[Any], batch_size: int, outer: Any = None) -> Spec:
    """Return the structure of containers of all samples, given where each leaf gets the batch dim.

    A container without leaves goes by what it is in, or by ``outer``.
    """

    def with_(size: torch.Size, d: int) -> torch.Size:
        return torch.Size((*size[:d], batch_size, *size[d:])) if d <= len(size) else size

    return _resized(spec, iter(dims), with_, outer)


def _resized(spec: Spec, dims: Iterator[Any], change: Callable[[torch.Size, int], torch.Size], outer: Any) -> Spec:
    if not _SIZED:
        return spec
    if spec is None:
        next(dims)
        return None
    kind, context, children = spec
    mine = list(itertools.islice(dims, count(spec))) or [outer if isinstance(outer, int) else None]
    if type(context) is Sized and any(d is not None for d in mine):
        if len(set(mine)) > 1 or mine[0] < 0 or not context.whole:
            why = f"the dims {sorted(set(mine), key=str)}" if context.whole else "a dim that its parts do not have"
            raise ValueError(
                f"vmap: cannot map a {kind.__name__} over {why}. Instead: one dim, not negative, for all that it holds, and "
                f"a container that holds whole tensors (.contiguous() makes one)."
            )
        context, outer = Sized(context.context, change(context.size, mine[0]), True), mine[0]
    rest = iter(mine)
    return kind, context, [_resized(child, rest, change, outer) for child in children]


def _close_other(kind: Any, context: Any, children: list[Any]) -> Any:
    if type(context) is Sized:
        made = _functions(kind)[1](children, context.context)  # type: ignore[index]
        if made.batch_size != context.size:
            made.batch_size = context.size
        return made
    put_together = _functions(kind)
    if put_together is not None:
        return put_together[1](children, context)
    if hasattr(kind, "_fields"):
        return kind._make(children)
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
