"""Handing the operations of a program to a backend of torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.fx import GraphModule

from ..torch_compat.eval_frame import backend_of
from ..torch_compat.fx_source import drop_source_with

if TYPE_CHECKING:
    from .program import Program


def hand_over(program: Program, backend: str | Callable[..., Any], leaves: list[Any]) -> tuple[Any, list[int]]:
    """Return what a backend makes of a program's operations, and which leaves and captured tensors that takes.

    Args:
        program: the program.
        backend: a backend's name, or a function ``(graph_module, example_inputs) -> callable``. The placeholders of
            tensors from outside have a true ``meta["captured"]``.
        leaves: the leaves of its arguments.
    """
    graph_module, takes = _used_inputs(program.graph_module)
    inputs = [([*leaves, *program.captured])[i] for i in takes]
    if isinstance(backend, str):
        backend = cast(Callable[..., Any], backend_of(backend))
    return backend(graph_module, inputs), takes


def _used_inputs(graph_module: GraphModule) -> tuple[GraphModule, list[int]]:
    """Return a copy of a graph that takes only the inputs it uses, and which ones these are."""
    graph = torch.fx.Graph()
    made = graph.graph_copy(graph_module.graph, {})
    graph.output(made)
    takes = []
    for i, node in enumerate([n for n in graph.nodes if n.op == "placeholder"]):
        if node.users:
            takes.append(i)
        else:
            graph.erase_node(node)
    return drop_source_with(GraphModule(graph_module, graph)), takes
