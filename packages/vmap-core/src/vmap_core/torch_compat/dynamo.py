"""The compiler's part of `one_graph`: how it records a transform. Imports the compiler, which takes seconds."""

from __future__ import annotations

import re
import traceback
from types import FunctionType
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.exc import unimplemented
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.variables import (
    ConstantVariable,
    ListVariable,
    TorchInGraphFunctionVariable,
    TupleVariable,
    UserDefinedObjectVariable,
)
from torch._dynamo.variables.base import AttributeMutationExisting, ValueMutationExisting, VariableTracker
from torch._dynamo.variables.builder import wrap_fx_proxy
from torch._dynamo.variables.functions import WrapperUserFunctionVariable
from torch._dynamo.variables.higher_order_ops import WrapHigherOrderVariable, _hop_name_to_variable_class
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from .one_graph import IN_META, At, Node, call_made, in_body, operator, run, seen_as, seen_in_bodies_as


class _TransformVariable(WrapHigherOrderVariable):
    """Records what `applied` calls: the body in a graph of its own, on samples, and one node that runs the transform."""

    _HOP_NAME = "vmap"
    supports_input_mutation = True
    supports_aliasing = True
    allow_side_effects = True  # a transform runs its function once, so they come once

    def call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:  # under the modes of the user's, too
        body, leaves, spec, more, more_spec, *constants = args
        name, given, options = constants
        given = tuple(map(_python, given.items))
        name, options = name.as_python_constant(), options.as_python_constant()
        tensors = [x for x in (*leaves.items, *more.items) if x.is_tensor()]
        count = iter(range(len(tensors)))
        known, known_more = (
            [At(next(count)) if x.is_tensor() else _constant(x) for x in part.items] for part in (leaves, more)
        )
        node = Node(
            name, given, options, known, spec.as_python_constant(), (known_more, more_spec.as_python_constant())
        )
        fakes = [_example(x.as_proxy()) for x in tensors]
        if isinstance(body, ConstantVariable):  # None: nothing to record
            graph, captured, own, target = None, [], (None,), _named(node)
        else:
            at, graph, captured = self._record(tx, body, leaves.items, node, fakes)
            own, target = (at,), run
        with _honest(name), tx.fake_mode, enable_python_dispatcher():
            example = node(graph, *fakes, *map(_example, captured))
        inputs = (*own, *[x.as_proxy() for x in tensors], *captured)
        result = wrap_fx_proxy(tx, tx.output.create_proxy("call_function", target, inputs, {}), example)
        assert node.result is not None
        kinds, out_spec = node.result
        values: Any = result
        items = [values.items[k.number] if type(k) is At else ConstantVariable.create(k) for k in kinds]
        return TupleVariable([ListVariable(items), VariableTracker.build(tx, out_spec)])

    def _record(self, tx: Any, body: Any, leaves: Any, node: Node, fakes: Any) -> Any:
        """Record the body; return the node of its graph, the graph, and what it captures."""
        with _honest(node.name), tx.fake_mode:
            looks = node.samples(fakes)
        samples, stand_ins = [], {}
        for i, (leaf, look) in enumerate(zip(leaves, looks, strict=True)):
            if leaf.is_tensor():
                proxy = tx.output.create_proxy("call_function", torch.ops.aten.alias.default, (leaf.as_proxy(),), {})
                stand_ins[proxy.node] = i
                leaf = wrap_fx_proxy(tx, proxy, look)
            samples.append(leaf)
        with _bodies:
            recorded: Any = self.create_wrapped_node(tx, body, samples, {}, node.name)
        (at, *inputs), _, _, made, graph, _, results, *_ = recorded
        node.places = [stand_ins.get(p.node) for p in inputs]
        if (
            tx.output.current_tracer.parent is None
        ):  # else the body around this one loses them, which may have noted them
            for stand_in in stand_ins:
                tx.output.remove_node(stand_in)
        index = {id(x): i for i, x in enumerate(results)}
        outs, spec = made.items
        node.outs = (
            [At(index[id(x)]) if id(x) in index else x.as_python_constant() for x in outs.items],
            spec.as_python_constant(),
        )
        _refuse_escape(tx, graph.graph, node.name)
        (output,) = graph.graph.find_nodes(op="output")
        output.args = (output.args[0][: 1 + max((x.number for x in node.outs[0] if type(x) is At), default=-1)],)
        for inner in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
            if not inner.users:
                graph.graph.erase_node(inner)
        graph.recompile()
        graph.meta[IN_META] = node
        return at, graph, [p for p, place in zip(inputs, node.places, strict=True) if place is None]


def _refuse_escape(tx: Any, body: Any, name: str) -> None:
    """Refuse a body that leaves one of its tensors in what lives on outside of it."""

    def check(x: Any) -> None:
        if x.is_tensor() and x.proxy.node.graph is body:
            unimplemented(
                gb_type="vmap: a tensor of one sample escapes",
                context=name,
                explanation=f"The function given to {name} keeps a tensor in something from outside of it.",
                hints=["Return the tensor"],
            )

    effects = tx.output.side_effects
    for kept in [x for x in effects.id_to_variable.values() if effects.is_modified(x)]:
        if isinstance(kept.mutation_type, AttributeMutationExisting | ValueMutationExisting):
            VariableTracker.visit(check, (kept, effects.store_attr_mutations.get(kept)))


class _Bodies:
    """How many bodies are being recorded, one inside the other."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *exc: object) -> None:
        self.depth -= 1


_bodies = _Bodies()


class _honest:
    """Turns an error of a transform into one of the compiler's: a graph break, or with fullgraph=True an error with its text."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception):
            unimplemented(
                gb_type="vmap: a transform that fails, or cannot be traced",
                context=self.name,
                explanation=_told(error),
                hints=["Run it without torch.compile to see whether it fails there, too"],
                from_exc=error,
            )


def _named(node: Node) -> Any:
    """Return a node as a function, which a graph wants."""

    def called(body: Any, *tensors: Any) -> Any:
        return node(body, *tensors)

    called.__name__ = called.__qualname__ = node.name
    return called


def _example(proxy: Any) -> Any:
    return proxy.node.meta["example_value"]


def _python(x: Any) -> Any:
    """Return the object that a variable stands for."""
    if isinstance(x, UserDefinedObjectVariable) and x.source is not None:
        install_guard(x.source.make_guard(GuardBuilder.ID_MATCH))
        return x.value
    return x.as_python_constant()


def _constant(x: Any) -> Any:
    return x.as_python_constant() if x.is_python_constant() else x


class _ShownVariable(WrapperUserFunctionVariable):
    """A function that the compiler sees as another one: a transform, or what one has made outside of what is compiled."""

    def __init__(self, value: Any, **options: Any) -> None:
        super().__init__(value, "__transform__", **options)

    def call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        if self.wrapper_obj is in_body:
            return ConstantVariable.create(_bodies.depth > 0)
        seen = seen_as.get(self.wrapper_obj) or seen_in_bodies_as.get(self.wrapper_obj)
        if seen is None:
            seen, args = call_made, [self, *args]
        return VariableTracker.build(tx, seen).call_function(tx, args, kwargs)


class _Shown(TorchInGraphFunctionVariable):
    """Makes such a variable. torch.compile itself wraps a function in a frame if its class is this."""

    def __new__(cls, value: Any, **options: Any) -> Any:
        return _ShownVariable(value, **options)

    @classmethod
    def create_with_source(cls, value: Any, source: Any) -> Any:
        install_guard(source.make_guard(GuardBuilder.ID_MATCH if value in seen_as else GuardBuilder.TYPE_MATCH))
        return cls(value, source=source)


def _told(error: BaseException) -> str:
    """Return what to say of an error from inside a recorded body, with the user's line in the place of the graph's."""
    here = _line_of_user(error)
    if isinstance(error, GuardOnDataDependentSymNode | DataDependentOutputException):
        where = f" at {here}" if here else ""
        return f"It needs the value of a tensor{where}, and the compiler has none: it records what depends on shapes alone."
    text = f"{type(error).__name__}: {error}"
    return _IN_A_GRAPH.sub(here, text) if here else text


_IN_A_GRAPH = re.compile(r"<eval_with_key>\.\d+:\d+")


def _line_of_user(error: BaseException) -> str | None:
    """Return ``file:line`` of what the innermost graph that an error has come through was recorded from."""
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        if frame.f_code.co_filename.startswith("<eval_with_key>"):
            graph = frame.f_locals.get("self")
            index = (getattr(graph, "_lineno_map", None) or {}).get(line - frame.f_code.co_firstlineno)
            if index is None:
                return None
            node = list(graph.graph.nodes)[index]  # type: ignore[union-attr]
            lines = re.findall(r'File "(.*)", line (\d+)', node.stack_trace or "")
            return ":".join(lines[-1]) if lines else None
    return None


def kind_of(function: FunctionType) -> Any:
    """Return the class of variables for a function that the compiler sees as another one, or None."""
    made = function.__dict__.get("__transform__")
    if (made is not None and made[0] == id(function)) or function in seen_as or function is in_body:
        return _Shown
    if _bodies.depth and function in seen_in_bodies_as:
        return _Shown
    return None


_hop_name_to_variable_class[operator.__name__] = _TransformVariable
