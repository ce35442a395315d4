"""Which node of a graph each tensor of a run is, and which tensors come from outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..errors import CaptureError, user_location
from ..levels.containers import leaves
from ..torch_compat import autocast
from ..torch_compat.functorch import is_wrapped
from ..torch_compat.mode_stack import DisableTorchFunction
from . import spelling


class Values:
    """The values that a graph knows.

    A node's ``meta`` holds: ``leads``, whether an argument may lead to an input or captured tensor that requires grad;
    ``tracked``, whether the result may; ``grad`` and ``autocast``, the state it ran in; ``impure``, whether it writes or draws;
    ``shape``, ``dtype`` and ``stride`` of a tensor; ``captured``, whether a placeholder is for a tensor from outside.

    Attributes:
        graph: the graph so far.
        inputs: the leaves of the arguments.
        captured: tensors from outside, with their placeholders.
        constants: further objects from outside, by the name that the graph has for them.
    """

    def __init__(self) -> None:
        """Start with an empty graph."""
        self.graph = Graph()
        self.inputs: list[Any] = []
        self.captured: list[tuple[Tensor, Node]] = []
        self.constants: dict[str, Any] = {}
        self._nodes: dict[int, Node] = {}
        self._detached: dict[int, Tensor] = {}
        self._inner: dict[int, Any] = {}  # the recorded call that alone has seen a tensor
        self._replaced: dict[Node, Node] = {}  # by what a call was taken apart into
        self._made: set[int] = set()  # storages
        self._input_storages: set[int] = set()
        self._alive: list[Any] = []  # ids stay unique while their objects live
        self._grads: list[tuple[Tensor, int, int]] = []
        self._generators: list[torch.Generator] = [torch.default_generator]
        self._tracked_writes = False
        self._first = self._node("call_function", print, (), {}, False, False)  # placeholders go before it

    def refusal(self, reason: str) -> CaptureError:
        """Make the error for something that cannot be captured, at the user's line."""
        return CaptureError(f"vmap: a program cannot be captured: {reason}, at {user_location()}.")

    def _expand(self, call: Any) -> None:
        """Put the operations that a call ran in the place of its node."""
        raise NotImplementedError

    def add_input(self, leaf: Any, name: str) -> Any:
        """Make a placeholder for a leaf of the arguments, and return what the function is to get for it.

        That is an alias, so that the same tensor captured by the function is told apart.
        """
        self.inputs.append(leaf)
        node = self._placeholder(name, leaf)
        if not isinstance(leaf, Tensor):
            return leaf
        self._input_storages.add(storage_of(leaf))
        with torch.enable_grad():
            alias = leaf.view_as(leaf)
        self._know(alias, node)
        return alias

    def _placeholder(self, name: str, value: Any) -> Node:
        with self.graph.inserting_before(self._first):
            node = self.graph.placeholder(name)
        tracked = isinstance(value, Tensor) and value.requires_grad
        node.meta.update(tracked=tracked, grad=True, impure=False, kind=_kind(value))
        if isinstance(value, Tensor):
            node.meta.update(layout_of(value))
        if tracked and value.is_leaf:
            self._grads.append((value, *state_of_grad(value)))
        return node

    def _know(self, x: Tensor, node: Node) -> None:
        self._nodes[id(x)] = node
        self._alive.append(x)

    def is_outside(self, x: Any) -> bool:
        """Tell whether a tensor is an input or comes from outside the function."""
        node = self._nodes.get(id(x))
        return (
            node.op == "placeholder" if node is not None else id(x) not in self._detached and id(x) not in self._inner
        )

    def same_value(self, x: Any, of: Any) -> None:
        """Say that a tensor has the value of another one."""
        self._know(x, self.node_of(of))

    def node_of(self, x: Tensor) -> Node:
        """Return the node whose value a tensor is.

        Raises:
            CaptureError: it was made during the run in a way that cannot be recorded.
        """
        if id(x) not in self._nodes and id(x) in self._inner:
            self._expand(self._inner[id(x)])
        node = self._nodes.get(id(x))
        if node is not None:
            while node in self._replaced:
                node = self._nodes[id(x)] = self._replaced[node]
            return node
        return self._node_of_detached(x) if id(x) in self._detached else self._capture(x)

    def _node_of_detached(self, x: Tensor) -> Node:
        """An alias: autograd makes one to save an output, and one, with the graph on it again, to give it back."""
        source = x
        while id(source) in self._detached and id(source) not in self._nodes:
            source = self._detached[id(source)]
        node = self.node_of(source)
        if node.meta["tracked"] and not x.requires_grad:
            node = self._node("call_method", "detach", (node,), {}, False, False)
        self._know(x, node)
        return node

    def _capture(self, x: Tensor) -> Node:
        storage = storage_of(x)
        made = storage in self._made or is_wrapped(x)
        if storage in self._input_storages and type(x) is not Tensor:  # a Parameter, made of an input by Python alone?
            made = made or all(x is not i for i in self.inputs)
        if made or type(x) not in (Tensor, torch.nn.Parameter):
            raise self.refusal(f"a {type(x).__name__} of shape {tuple(x.shape)} was made in a way that no call shows")
        node = self._placeholder(f"captured_{len(self.captured)}", x)
        node.meta["captured"] = True
        self.captured.append((x, node))
        self._know(x, node)
        return node

    def _node(self, kind: str, target: Any, args: Any, kwargs: Any, grad: bool, impure: bool) -> Node:
        node = self.graph.create_node(kind, target, tuple(args), dict(kwargs))
        leads = self._tracked_writes or any(n.meta["tracked"] for n in node.all_input_nodes)
        node.meta.update(tracked=grad and leads, leads=leads, grad=grad, impure=impure, autocast=self._autocast_state())
        return node

    def _autocast_state(self) -> Any:
        return autocast.state()

    def _as_nodes(self, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        for t in tensors_of((args, kwargs)):
            self.node_of(t)  # first all of them: one may take apart the call that has made another
        return tuple(map(self._as_node, args)), {k: self._as_node(v) for k, v in kwargs.items()}

    def _as_node(self, a: Any) -> Any:
        """Return an argument as the graph has it: fx knows slices, and plain tuples, lists and dicts only."""
        kind = type(a)
        if isinstance(a, Tensor):
            return self.node_of(a)
        if isinstance(a, tuple):
            return tuple(map(self._as_node, a))
        if kind is list:
            return list(map(self._as_node, a))
        if kind is dict:
            return {k: self._as_node(v) for k, v in a.items()}
        if kind is slice:
            return slice(*map(self._as_node, (a.start, a.stop, a.step)))
        if kind in spelling.PLAIN:
            return a
        if kind is torch.Generator and all(a is not g for g in (*self.inputs, *self._generators)):
            raise self.refusal("a torch.Generator that is not an argument may be another one in the next call")
        return self.constant(a)

    def constant(self, value: Any) -> Node:
        """Return a node for an object that the program holds by identity."""
        name = next((n for n, known in self.constants.items() if known is value), None)
        if name is None:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = value
        return self._node("get_attr", name, (), {}, False, False)


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def layout_of(x: Tensor) -> dict[str, Any]:
    """Return what a node's ``meta`` holds of a tensor."""
    return {"shape": tuple(x.shape), "dtype": x.dtype, "stride": x.stride() if x.layout is torch.strided else None}


def state_of_grad(x: Tensor) -> tuple[int, int]:
    """Return what changes when something is accumulated into ``x.grad``."""
    return id(x.grad), -1 if x.grad is None else x.grad._version


def storage_of(x: Tensor) -> int:
    """Return what identifies a tensor's memory."""
    try:
        with DisableTorchFunction():
            return x.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # it has none
        return id(x)


def tensors_of(a: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in an argument or a result."""
    return (x for x in leaves(a) if isinstance(x, Tensor))
