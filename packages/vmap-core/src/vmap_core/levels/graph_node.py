"""Nodes of the autograd graph, as a mapped function sees them."""

from __future__ import annotations

from typing import Any

from torch.autograd.function import BackwardCFunction

from ..errors import UnsupportedError, user_location


class GraphNode:
    """A node that C++ made: it may be looked at, but its hooks know nothing of samples."""

    __slots__ = ("_node",)

    def __init__(self, node: Any) -> None:
        """Stand for a node."""
        self._node = node

    def __getattr__(self, name: str) -> Any:
        """Answer as the node does."""
        return getattr(self._node, name)

    def __repr__(self) -> str:
        """Show the node."""
        return repr(self._node)

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same node."""
        return self._node is (other._node if isinstance(other, GraphNode) else other)

    def __hash__(self) -> int:
        """Hash by the node."""
        return hash(self._node)

    def register_hook(self, hook: Any) -> Any:
        """Refuse.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"vmap: a hook on the graph's node {self._node.name()}, at {user_location()}, would get the gradients of all "
            f"samples as one tensor. Instead: use register_hook of the tensor."
        )

    register_prehook = register_hook


def of_sample(node: Any) -> Any:
    """Return what ``grad_fn`` of a BatchedTensor gives for its physical node."""
    # A Function's own node comes from vmap-autograd, which shows hooks the gradients of a sample.
    return node if node is None or isinstance(node, BackwardCFunction | GraphNode) else GraphNode(node)
