"""Nested inputs and outputs: trees of what `containers` says is a container.

An own flatten, since it runs on every call of a mapped function: tuples, lists and dicts take the short way, other
registered containers PyTorch's registry.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .containers import LEAVES, SIZED, Like, Sized, keys_of, put_together, take_apart

# A leaf has the spec None; a container (kind, context, children's specs).
Spec = tuple[Any, Any, list[Any]] | None


def flatten(tree: Any, leaves: list[Any]) -> Spec:
    """Append the leaves of a tree to a list and return its structure."""
    if type(tree) in LEAVES:
        leaves.append(tree)
        return None
    kind, context, children = take_apart(tree)
    if children is None:
        leaves.append(tree)
        return None
    if LEAVES.issuperset(map(type, children)):  # here and below, what is commonest in fewer steps
        leaves += children
        return kind, context, [None] * len(children)
    return kind, context, [flatten(child, leaves) for child in children]


def unflatten(spec: Spec, leaves: Iterator[Any]) -> Any:
    """Make a tree of a structure from leaves, taken in order."""
    if spec is None:
        return next(leaves)
    kind, context, children = spec
    if children.count(None) == len(children):
        made = list(itertools.islice(leaves, len(children)))
    else:
        made = [next(leaves) if child is None else unflatten(child, leaves) for child in children]
    return put_together(kind, context, made)


def broadcast(prefix: Any, spec: Spec) -> list[Any] | None:
    """Return one entry of ``prefix`` for each leaf of a structure.

    Args:
        prefix: a tree that stops at, or above, the leaves: an entry counts for all leaves below its place.
        spec: the structure.

    Returns:
        The entries in the order of the leaves, or None if the structures do not agree.
    """
    kind, context, children = take_apart(prefix)
    if children is None:
        return [prefix] * count(spec)
    if spec is None or len(children) != len(spec[2]):
        return None
    given, keys = (None, None) if kind is tuple else (keys_of(kind, context), keys_of(spec[0], spec[1]))
    if given is not None and keys is not None:  # dicts of all kinds are compatible, and go by key
        by_key = dict(zip(given, children, strict=True))
        if by_key.keys() != set(keys):
            return None
        children = [by_key[key] for key in keys]
    elif kind is not spec[0] or (context != spec[1] and kind is not deque and type(context) is not Like):
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
    if spec is None:
        return 1
    alone = spec[2].count(None)
    return alone if alone == len(spec[2]) else alone + sum([count(child) for child in spec[2] if child is not None])


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
    if not SIZED:
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
