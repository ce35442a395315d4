"""What a recorded graph is made into before it is replayed: the same values and memory, by fewer and cheaper calls."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from ..torch_compat import autocast as _autocast
from ..torch_compat.tensors import set_grad_enabled


def simplify(graph: Graph, grad: bool, autocast: Any) -> None:
    """Take out what has no effect, and put in the switches of grad mode and autocast that have one.

    Args:
        graph: a recorded graph (see `Recorder` for the nodes' ``meta``).
        grad: the grad mode it starts and ends in.
        autocast: the state of autocast it starts and ends in.
    """
    tracks = any(n.op == "placeholder" and n.meta["tracked"] for n in graph.nodes)
    merges = not tracks and not any(n.meta.get("impure") for n in graph.nodes)  # no graph, no writes: values are all
    if not any(n.target in _CHANGE_METADATA for n in graph.nodes):
        seen: dict[Any, Node] = {}
        for node in list(graph.nodes):
            if node.op.startswith("call"):
                _merge_alias(node, tracks, seen)
                if merges:
                    _drop_identity(node)
                _keep_dim(node)
                _unpack_dim(node)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "call_method", "get_attr") and not node.users and not node.meta["impure"]:
            graph.erase_node(node)
    if tracks:
        _switch_grad_mode(graph, grad)
    _switch_autocast(graph, autocast)
    graph.lint()


def _merge_alias(node: Node, tracks: bool, seen: dict[Any, Node]) -> None:
    """Use an alias' source, or the same view made before, where nobody sees that it is another object."""
    leaves_no_graph = node.target in ("detach", torch.detach) and not tracks
    moves_nothing = node.target == "movedim" and node.args[1] == node.args[2]
    if leaves_no_graph or moves_nothing:
        source: Any = node.args[0]
    elif node.target is getattr:
        source = seen.setdefault((node.args, node.meta["grad"]), node)
    else:
        return
    if source is not node and all(user.op != "output" for user in node.users):
        node.replace_all_uses_with(source)


def _drop_identity(node: Node) -> None:
    """Use the argument of an operation that gives its value again: what formulas of derivatives are full of."""
    args = node.args
    if not args or not isinstance(args[0], Node):
        return
    source = args[0]
    if node.target in _VIEWS and _is_ones(source):
        node.meta["ones"] = True
    same: Any = None
    if node.target == "view_as" or (node.target is torch.pow and args[1] == 1):
        same = source
    elif node.target == "select" and args[1:] == (0, 0) and source.target == "expand":
        same = source.args[0]  # one of equal rows
    elif node.target in (torch.mul, "mul") and isinstance(args[1], Node):
        same = args[1] if _is_ones(source) else source if _is_ones(args[1]) else None
    if not isinstance(same, Node) or any(user.op == "output" for user in node.users):
        return
    if all(same.meta.get(k) == node.meta[k] for k in ("shape", "dtype", "stride")):
        node.replace_all_uses_with(same)


def _is_ones(node: Node) -> bool:
    return node.target in (torch.ones, torch.ones_like) or "ones" in node.meta


def _calls(*names: str) -> set[Any]:
    """Return the targets of calls to what PyTorch has as a method and, mostly, as a function."""
    return {*names, *(getattr(torch, name) for name in names if hasattr(torch, name))}


_VIEWS = _calls("unsqueeze", "squeeze", "expand", "view", "reshape", "transpose")

# Methods that give a tensor another shape, or another graph, in place.
_CHANGE_METADATA = {
    "as_strided_", "detach_", "resize_", "resize_as_", "set_", "squeeze_", "swapaxes_", "swapdims_", "t_", "transpose_",
    "unsqueeze_",
}  # fmt: skip


def _keep_dim(node: Node) -> None:
    """``sum(x, d).unsqueeze(d)``, or another view that puts the reduced dim back, is ``sum(x, d, keepdim=True)``."""
    if node.target not in ("reshape", "view", "unsqueeze") or len(node.args) < 2:
        return
    reduced = node.args[0]
    if not isinstance(reduced, Node) or reduced.target not in _KEEP_DIM or len(reduced.args) != 2 or reduced.kwargs:
        return
    x, dim = reduced.args
    if isinstance(dim, list | tuple) and len(dim) == 1:
        (dim,) = dim
    if len(reduced.users) != 1 or not isinstance(x, Node) or not isinstance(dim, int) or "shape" not in x.meta:
        return
    kept = list(x.meta["shape"])
    kept[dim] = 1
    if list(node.meta["shape"]) == kept:
        with node.graph.inserting_before(node):
            new = node.graph.create_node(reduced.op, reduced.target, (x, dim), {"keepdim": True})
        new.meta = {**reduced.meta, "shape": tuple(kept)}
        node.replace_all_uses_with(new)


_KEEP_DIM = _calls("sum", "mean", "amax", "amin", "prod", "logsumexp", "all", "any")


def _unpack_dim(node: Node) -> None:
    """One dim as a number is parsed faster than a list of it."""
    if node.target in _TAKES_DIM and len(node.args) > 1:
        dim = node.args[1]
        if isinstance(dim, list | tuple) and len(dim) == 1 and isinstance(dim[0], int):
            node.args = (node.args[0], dim[0], *node.args[2:])


_TAKES_DIM = _calls("sum", "mean", "amax", "amin", "logsumexp", "squeeze")


def _switch_grad_mode(graph: Graph, grad: bool) -> None:
    """Set the grad mode that an operation was recorded in, where it has a graph to leave or to join."""
    mode = grad
    for node in list(graph.nodes):
        if node.op.startswith("call") and node.meta["leads"] and node.meta["grad"] != mode and node.target != "detach":
            if node.target is operator.getitem and isinstance(node.args[1], int):
                continue  # an item of a result, or a view of a tensor
            mode = node.meta["grad"]
            with graph.inserting_before(node):
                switch = graph.call_function(set_grad_enabled, (mode,))
            switch.meta.update(tracked=False, grad=mode, impure=True, autocast=None)


def _switch_autocast(graph: Graph, autocast: Any) -> None:
    """Set autocast to the state that an operation was recorded in."""
    state = autocast
    for node in list(graph.nodes):
        wanted = node.meta["autocast"] if node.op in ("call_function", "call_method") else state
        wanted = autocast if node.op == "output" else wanted
        if wanted != state and node.target not in (set_grad_enabled, operator.getitem, getattr):
            state = wanted
            with graph.inserting_before(node):
                switch = graph.call_function(_autocast.set_state, (state,))
            switch.meta.update(tracked=False, grad=True, impure=True, autocast=state)
