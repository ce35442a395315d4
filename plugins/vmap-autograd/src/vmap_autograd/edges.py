"""`GradientEdge`: a place in the graph, in a tensor's stead. It has the batch dims of the tensor that it is an edge of.

They are known of an edge of a tensor (`torch.autograd.graph.get_gradient_edge`) and of a leaf; one that was made of a node
that a walk through the graph has found may be of any tensor, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from vmap_core.extend import (
    BatchedTensor,
    Dims,
    GraphNode,
    Level,
    UnsupportedError,
    make_batched,
    patch,
    physical_with_dims,
    shows_samples,
    unwrap,
    user_location,
    without_modes,
)

from ._torch import NODE_OF_TENSOR


@patch(
    NODE_OF_TENSOR,
    "get_gradient_edge() looks the node of a tensor up with it: of a batched one that knows its batch dims.",
)
def find_node(native: Any) -> Any:
    """Give the node of a batched tensor."""

    def node_of_tensor(t: Any) -> Any:
        if type(t) is not BatchedTensor:
            return native(t)
        value, dims = physical_with_dims(t)
        with without_modes(), torch.enable_grad():
            node = native(value)
            keeps = value.view_as(value).grad_fn if isinstance(node, BackwardCFunction) else None
        return GraphNode(node, {value.output_nr: dims}, keeps)

    return node_of_tensor


def unwrap_edges(level: Level, items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return tensors and edges as they are one level further out, and their batch dims."""
    values, dims, _ = unwrap(level, items)
    for i, item in enumerate(items):
        if isinstance(item, GradientEdge):
            values[i], dims[i] = _unwrap_edge(level, item)
    return values, dims


def _unwrap_edge(level: Level, edge: Any) -> tuple[Any, int | None]:
    if shows_samples(edge.node, level):
        raise _of_unknown_tensor()
    known, bdim = _dims(edge), None
    if known and known[-1][0] is level:
        bdim = known[-1][1]
        known = known[:-1]
    elif known and not known[-1][0].active:
        raise UnsupportedError(
            f"vmap: a GradientEdge of the {known[-1][0]!r} was used at {user_location()}, where that level is no longer "
            f"active. Instead: use it inside the mapped function."
        )
    node = node_of(edge)
    return edge._replace(node=GraphNode(node, {edge.output_nr: known}) if known else node), bdim


def is_of_outer_level(item: Any) -> bool:
    """Tell whether a tensor or an edge has a level further out."""
    return type(item) is BatchedTensor or (isinstance(item, GradientEdge) and bool(_dims(item)))


def stand_in(item: Any) -> Any:
    """Return a tensor as it is, and for an edge one that is like its gradient, but zero."""
    if not isinstance(item, GradientEdge):
        return item
    meta = node_of(item)._input_metadata[item.output_nr]
    with without_modes():
        tensor: Any = torch.zeros((), dtype=meta.dtype, device=meta.device).expand(torch.Size(meta.shape))
    for level, bdim in _dims(item):
        tensor = make_batched(tensor, bdim, level)
    return tensor


def leaf_of(item: Any) -> Any:
    """Return a tensor as it is, and for the edge of a leaf that leaf."""
    return getattr(node_of(item), "variable", item) if isinstance(item, GradientEdge) else item


def node_of(edge: Any) -> Any:
    """Return the physical node of an edge."""
    return edge.node.node if type(edge.node) is GraphNode else edge.node


def _dims(edge: Any) -> Dims:
    """Return the levels and batch dims of an edge; none for one from outside."""
    if type(edge.node) is not GraphNode:
        return ()
    dims: Dims | None = edge.node.dims.get(edge.output_nr)
    if dims is None:
        raise _of_unknown_tensor()
    return dims


def _of_unknown_tensor() -> UnsupportedError:
    return UnsupportedError(
        f"vmap: torch.autograd on a GradientEdge of a node that was found in the graph, at {user_location()}: it does not "
        f"know its batch dim. Instead: pass the tensor, or torch.autograd.graph.get_gradient_edge of it."
    )
