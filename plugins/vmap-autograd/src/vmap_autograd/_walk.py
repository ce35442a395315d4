"""The backward pass for a batch of vectors over one recorded graph: node by node, in Python.

PyTorch's engine knows no batch dim. It takes lowered vectors, but then every operation of every node's formula comes back
through the dispatcher. A node can also be called like a function, and most kinds take a vector with one more dim in front,
as they are or by a formula of ours (`_nodes`). So the engine's walk is done here, on physical tensors:

- a node runs when its outputs' gradients have all come in, and only if it leads to an input;
- a gradient is summed to the shape of the tensor that it is of, and cast to its dtype;
- what a node has saved is read from the node, which raises where it was freed or written to.

Any other kind of node runs alone, on lowered vectors. What only the engine does is left to it: hooks, anomaly mode, custom
Functions, forward mode, complex numbers, several devices or streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import Parameter

from vmap_core.extend import current_recorder, lowered_map, without_modes

from ._nodes import formula_of, is_linear
from ._state import hooks_made
from ._torch import AccumulateGrad, PythonNode, UndefinedGrad, dual_level, run_engine, transforms_active

Edge = tuple[Any, int]  # a node, and which of its outputs
Meta = tuple[tuple[int, ...], torch.dtype]  # of the tensor that is that output


def batched_vjp(
    outputs: Sequence[Any], inputs: Sequence[Any], vectors: Sequence[Any], *, keep: bool, create_graph: bool,
    allow_unused: bool = False, hooks: int = 0,
) -> list[Any] | None:  # fmt: skip
    """Return the inputs' gradients for a batch of vectors, with the batch dim in front; None to leave it to the engine.

    Args:
        outputs: physical tensors.
        inputs: physical tensors.
        vectors: physical tensors ``(n, *output.shape)``, one for each output.
        keep: whether to retain the graph.
        create_graph: whether to record the backward pass.
        allow_unused: whether outputs need not depend on an input; its gradient is None.
        hooks: `hooks_made` before the graph was recorded.

    Examples:
        >>> import torch
        >>> from vmap_autograd._state import hooks_made
        >>> from vmap_autograd._walk import batched_vjp
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> batched_vjp([x**2], [x], [torch.eye(2)], keep=False, create_graph=False, hooks=hooks_made())
        [tensor([[2., 0.],
                [0., 4.]])]
    """
    if hooks_made() != hooks or torch.is_anomaly_enabled() or dual_level() >= 0 or transforms_active():
        return None
    if current_recorder() is not None or not _are_plain(outputs, inputs, vectors):
        return None
    plan = _plan(outputs, inputs)
    if plan is None:
        return None
    try:
        with without_modes(), torch.set_grad_enabled(create_graph):
            results = _walk(plan, outputs, vectors)
    except RuntimeError:
        return None  # the engine raises it too, and says more
    if not allow_unused and any(g is None for g in results):
        return None
    if not keep:
        _free(outputs, inputs)
    return results


def _are_plain(outputs: Sequence[Any], inputs: Sequence[Any], vectors: Sequence[Any]) -> bool:
    """Tell whether these are dense tensors on one device, of PyTorch's own class, outputs and inputs with a graph."""
    device = vectors[0].device
    for t in (*outputs, *inputs, *vectors):
        if type(t) not in (Tensor, Parameter) or t.layout is not torch.strided or t.is_nested or t.device != device:
            return False
    if any(o.grad_fn is None for o in outputs) or not all(x.requires_grad for x in inputs):
        return False
    if any(x.grad_fn is None and getattr(x, "grad_dtype", x.dtype) != x.dtype for x in inputs):
        return False
    if device.type == "cuda":  # the engine runs a node on the stream of its forward
        return bool(torch.cuda.current_stream(device) == torch.cuda.default_stream(device))
    return bool(device.type == "cpu")


@dataclass(slots=True)
class _Step:
    """A node to run.

    Attributes:
        node: the node.
        outputs: how many gradients it takes.
        formula: gives what the node gives, for a batch of vectors; None to run the node alone.
        needed: which of its results lead to an input.
        targets: those, each with where it goes, and shape and dtype of the tensor that it is the gradient of.
    """

    node: Any
    outputs: int
    formula: Any
    needed: list[bool]
    targets: list[tuple[int, Edge, Meta]]


@dataclass(slots=True)
class _Plan:
    """What leads from outputs to inputs.

    Attributes:
        steps: the nodes, each after those whose results it takes.
        inputs: where each input's gradient comes in; None where no output depends on it.
        metas: shape and dtype of all outputs of each node, and of the inputs.
    """

    steps: list[_Step]
    inputs: list[Edge | None]
    metas: dict[Any, list[Meta]]


def _plan(outputs: Sequence[Any], inputs: Sequence[Any]) -> _Plan | None:
    """Return the plan; None where a node is one for the engine."""
    device = outputs[0].device
    leaves: dict[int, Any] = {id(x): None for x in inputs if x.grad_fn is None}
    wanted = {(x.grad_fn, x.output_nr) for x in inputs if x.grad_fn is not None}
    ends = {node for node, _ in wanted}
    opened: dict[Any, Sequence[Edge]] = {}
    leads: dict[Any, bool] = {None: False}  # whether a node is to be run
    metas: dict[Any, list[Meta]] = {}
    steps: list[_Step] = []
    todo = [o.grad_fn for o in outputs]
    while todo:
        node = todo[-1]
        if node not in opened:  # what follows it comes first
            opened[node] = node.next_functions
            todo += [n for n, _ in opened[node] if n is not None and n not in opened]
            continue
        todo.pop()
        if node in leads:
            continue
        needed: list[bool] = []
        if type(node) is AccumulateGrad:
            if id(node.variable) in leaves:
                leaves[id(node.variable)] = node
                wanted.add((node, 0))
                ends.add(node)
        else:
            needed = [leads[edge[0]] or edge in wanted for edge in opened[node]]
        leads[node] = True in needed
        if leads[node] or node in ends:
            metas[node] = []
            for m in node._input_metadata:
                if m.device != device or m.dtype.is_complex:
                    return None
                metas[node].append((tuple(m.shape), m.dtype))
        if leads[node]:
            if isinstance(node, PythonNode) and not is_linear(node):
                return None
            targets = [(i, e, metas[e[0]][e[1]]) for i, e in enumerate(opened[node]) if needed[i]]
            steps.append(_Step(node, len(metas[node]), formula_of(node), needed, targets))
    steps.reverse()
    edges = [(leaves[id(x)], 0) if x.grad_fn is None else (x.grad_fn, x.output_nr) for x in inputs]
    return _Plan(steps, [edge if edge[0] in metas else None for edge in edges], metas)


def _walk(plan: _Plan, outputs: Sequence[Any], vectors: Sequence[Any]) -> list[Any]:
    """Return what comes in at the inputs."""
    ends = {edge[0] for edge in plan.inputs if edge is not None}
    grads: dict[Edge, Any] = {}
    for o, v in zip(outputs, vectors, strict=True):
        edge = o.grad_fn, o.output_nr
        if edge[0] in plan.metas:
            v = fitted(v, *plan.metas[edge[0]][edge[1]])
            grads[edge] = grads[edge] + v if edge in grads else v
    for step in plan.steps:
        node = step.node
        take = grads.get if node in ends else grads.pop
        given = [take((node, k), None) for k in range(step.outputs)]
        if all([g is None for g in given]):
            continue
        results: Any = NotImplemented
        if step.formula is not None and step.outputs == 1:
            results = step.formula(node, given[0], step.needed)
        if results is NotImplemented:
            results = _alone(step, given)
        elif type(results) is not tuple:
            results = (results,)
        for i, edge, meta in step.targets:
            result = results[i]
            if result is not None:
                result = fitted(result, *meta)
                grads[edge] = grads[edge] + result if edge in grads else result
        del given, results, result  # memory, while the next one runs
    return [None if edge is None else grads.get(edge) for edge in plan.inputs]


def fitted(grad: Any, shape: Sequence[int], dtype: torch.dtype) -> Any:
    """Return a batch of gradients with shape and dtype of the tensor that they are of, as the engine makes them."""
    if grad.shape[1:] != shape:
        extra = grad.ndim - 1 - len(shape)
        if extra < 0:
            raise RuntimeError(f"a gradient of shape {tuple(grad.shape[1:])} for a tensor of shape {tuple(shape)}")
        sums = [d for d, n in enumerate(shape, 1 + extra) if n == 1 and grad.shape[d] != 1]
        grad = grad.sum([*range(1, 1 + extra), *sums], keepdim=True).reshape(grad.shape[0], *shape)
    return grad if grad.dtype == dtype else grad.to(dtype)


def _alone(step: _Step, given: list[Any]) -> list[Any]:
    """Run one node on lowered vectors."""
    at = [k for k, g in enumerate(given) if g is not None]
    found = [i for i, needed in enumerate(step.needed) if needed]

    def call(lowered: list[Any]) -> list[Any]:
        args = dict(zip(at, lowered, strict=True))
        results = step.node(*map(args.get, range(len(given))))
        results = results if type(results) is tuple else (results,)
        found[:] = [i for i in found if results[i] is not None]
        return [results[i] for i in found]

    def run(lowered: list[Any]) -> Any:
        del found[1:]
        return torch.autograd.grad(
            [GradientEdge(step.node, k) for k in at], [GradientEdge(*edge) for edge in targets], lowered,
            retain_graph=True, create_graph=torch.is_grad_enabled(),
        )  # fmt: skip

    # Called like a function, a node computes for weights too whose gradients nobody asks for; the engine tells it. But
    # from one of two targets the engine would go on to the other.
    targets = {edge for _, edge, _ in step.targets}
    computed = sum(n is not None for n, _ in step.node.next_functions)
    gradients = lowered_map(run if len(found) < computed and len(targets) == 1 else call, [given[k] for k in at])
    results = dict(zip(found, gradients, strict=True))
    return [results.get(i) for i in range(len(step.needed))]


def _free(outputs: Sequence[Any], inputs: Sequence[Any]) -> None:
    """Let the engine free what the nodes have saved: it gives them no gradients, so they compute nothing."""
    with torch.enable_grad():
        ends = tuple([UndefinedGrad()(o) for o in outputs])
    run_engine(ends, ends, False, False, tuple(inputs), allow_unreachable=True, accumulate_grad=False)
