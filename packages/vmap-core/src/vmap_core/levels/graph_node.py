"""Nodes of the autograd graph, as a mapped function sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

from ..errors import UnsupportedError, user_location
from .tensor import BatchedTensor

Dims = tuple[tuple[Any, int | None], ...]
"""The levels of a tensor with its batch dims there, outermost first."""


class GraphNode:
    """A node that C++ made: it may be looked at, but its hooks know nothing of samples.

    Attributes:
        node: the node.
        dims: levels and batch dims of those of its outputs for which they are known, by number.
        keeps: a further node, which keeps one in Python alive.
    """

    __slots__ = ("dims", "keeps", "node")

    def __init__(self, node: Any, dims: dict[int, Dims], keeps: Any = None) -> None:
        """Stand for a node."""
        self.node = node
        self.dims = dims
        self.keeps = keeps

    @property
    def _input_metadata(self) -> list[Any]:
        """What torch.autograd asks of an edge: the gradient's shape for a sample, its dtype and device."""
        found = list(self.node._input_metadata)
        for number, dims in self.dims.items():
            found[number] = SampleMetadata(found[number], dims)
        return found

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        """The nodes that come after this one in a backward pass, with the numbers of their outputs."""
        return tuple((_next(node), number) for node, number in self.node.next_functions)

    def __getattr__(self, name: str) -> Any:
        """Answer as the node does."""
        return getattr(self.node, name)

    def __repr__(self) -> str:
        """Show the node."""
        return repr(self.node)

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same node."""
        return self.node is (other.node if isinstance(other, GraphNode) else other)

    def __hash__(self) -> int:
        """Hash by the node."""
        return hash(self.node)

    def register_hook(self, hook: Any) -> Any:
        """Refuse.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"vmap: a hook on the graph's node {self.node.name()}, at {user_location()}, would get the gradients of all "
            f"samples as one tensor. Instead: use register_hook of the tensor."
        )

    register_prehook = register_hook


class SampleMetadata:
    """What is known of a gradient: of its size, what a sample's is."""

    def __init__(self, physical: Any, dims: Dims) -> None:
        """Take the batch dims off the physical shape."""
        shape = list(physical.shape)
        for _, bdim in dims:
            if bdim is not None:
                del shape[bdim]
        self.shape = torch.Size(shape)
        self.physical = physical

    def __getattr__(self, name: str) -> Any:
        """Answer as that of the physical gradient does."""
        return getattr(self.physical, name)


def of_sample(node: Any, number: int, dims: Dims) -> Any:
    """Return what ``grad_fn`` of a BatchedTensor gives for its physical node and the number of the output that it is."""
    if node is None or shows_samples(node, dims[-1][0]):
        return node
    return GraphNode(node, {number: dims})


def physical_with_dims(tensor: Any) -> tuple[Any, Dims]:
    """Return the tensor behind all levels, with these and its batch dims there."""
    dims: Dims = ()
    while type(tensor) is BatchedTensor:
        dims = ((tensor._level, tensor._bdim), *dims)
        tensor = tensor._value
    return tensor, dims


def shows_samples(node: Any, level: Any) -> bool:
    """Tell whether a node is that of a Function at a level: vmap-autograd's, which shows hooks the gradients of a sample."""
    of_class = getattr(node, "_forward_cls", None) if isinstance(node, BackwardCFunction) else None
    return getattr(of_class, "holds_a_call", False) and node.call.is_at(level)


def _next(node: Any) -> Any:
    if node is None:
        return None
    leaf = getattr(node, "variable", None)
    if leaf is None:
        return GraphNode(node, {})
    dims: Dims = getattr(leaf, "_vmap_dims", ())
    return GraphNode(node, {0: dims}) if dims else node  # else a leaf from outside every level
