"""`backward()` and `.grad` inside a mapped function, on tensors that the function made.

A leaf made inside has a batch dim, so one physical backward pass accumulates each sample's gradient apart from the
others'. A leaf from outside would get the sum over all samples: that is done where ``inputs=`` asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vmap_core.extend import (
    BatchedTensor,
    Level,
    RulePack,
    UnsupportedError,
    leaf_level,
    mapped,
    unwrap,
    user_location,
)

from ._function_call import runs_backward
from ._torch import AccumulateGrad
from .edges import leaf_of, node_of, unwrap_edges
from .grad import aligned, as_tuple, seed

pack = RulePack("autograd.accumulate")


@pack.logical(torch.autograd.backward)
def backward(
    info: Level,
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    grad_variables: Any = None,
    inputs: Any = None,
) -> None:
    """Accumulate the gradients of (tensors), each batched or not, into ``.grad`` of the leaves."""
    tensors = as_tuple(tensors)
    grad_tensors = grad_variables if grad_tensors is None else grad_tensors
    vectors = as_tuple(grad_tensors) if grad_tensors is not None else (None,) * len(tensors)
    values, dims = unwrap_edges(info, tensors)
    seeds = [_seed(info, t, v, d) for t, v, d in zip(tensors, vectors, dims, strict=True)]
    leaves = None
    if inputs is not None:
        named = as_tuple(tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs)
        leaves, leaf_dims = unwrap_edges(info, named)
        _summed(info).update(id(leaf_of(x)) for x, d in zip(leaves, leaf_dims, strict=True) if d is None)
    elif not runs_backward(info):
        _refuse_leaves_from_outside(info, values)
    torch.autograd.backward(values, seeds, retain_graph, create_graph, inputs=leaves)


@pack.logical(Tensor.backward)
def tensor_backward(
    info: Level, x: Any, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
) -> None:
    """``x.backward()``."""
    backward(info, x, gradient, retain_graph, create_graph, inputs=inputs)


@pack.logical(Tensor.retain_grad)
def retain_grad(info: Level, x: Any) -> None:
    """``x.retain_grad()``: the gradient of a batched tensor has its batch dim."""
    if type(x) is not BatchedTensor or x._level is not info:
        x.retain_grad()
    elif x._bdim is not None:
        x._value.retain_grad()
    else:
        raise UnsupportedError(
            f"vmap: retain_grad on a tensor that does not depend on the sample, at {user_location()}: its gradient is "
            f"one sum over the samples. Instead: use torch.autograd.grad with it as an input."
        )


@pack.logical(Tensor.grad.__get__)  # type: ignore[union-attr]
def get_grad(info: Level, x: Any) -> Any:
    """``x.grad``."""
    if type(x) is BatchedTensor and x._level is info:
        grad = x._value.grad
        return None if grad is None else mapped(grad, x._bdim, info)
    if id(x) in _summed(info):
        raise UnsupportedError(
            f"vmap: .grad of a tensor from outside the mapped function, at {user_location()}: it holds the sum over "
            f"all samples, which a loop would not have reached yet. Instead: read it after vmap has returned."
        )
    return x.grad


@pack.logical(Tensor.grad.__set__)  # type: ignore[union-attr]
def set_grad(info: Level, x: Any, grad: Any) -> None:
    """``x.grad = grad``."""
    (value,), (bdim,), batched = unwrap(info, (x,))
    if batched and grad is not None:
        shared = unwrap(info, (grad,))[1][0] is None
        grad = aligned(info, grad, bdim)
        grad = grad.clone(memory_format=torch.contiguous_format) if shared else grad  # backward() adds to it in place
    elif type(grad) is BatchedTensor and grad._level is info:
        (grad,), (grad_dim,), _ = unwrap(info, (grad,))
        if grad_dim is not None:
            raise UnsupportedError(
                f"vmap: a batched gradient is assigned to .grad of a tensor that all samples share, at "
                f"{user_location()}. Instead: return the gradient from the mapped function."
            )
    value.grad = grad


def _seed(info: Level, output: Any, vector: Any, bdim: int | None) -> Any:
    """Return the physical vector of an output; an unbatched one is every sample's, so their vectors add up."""
    vector = seed(info, output, vector)
    if bdim is not None:
        return aligned(info, vector, bdim)
    (value,), (dim,), _ = unwrap(info, (vector,))
    return value * info.batch_size if dim is None else value.sum(dim)


def _summed(info: Level) -> set[int]:
    """Return the ids of the leaves from outside into which this level has accumulated."""
    result: set[int] = info.__dict__.setdefault("_summed_leaves", set())
    return result


def _refuse_leaves_from_outside(info: Level, values: Any) -> None:
    for leaf in leaves_of(values):
        made_at = leaf_level(leaf)
        if made_at is None or made_at.depth < info.depth:
            raise UnsupportedError(
                f"vmap: backward() at {user_location()} reaches a leaf of shape {tuple(leaf.shape)} from outside the "
                f"mapped function, whose .grad all samples share. Instead: make it the function's own "
                f"(`w = w.detach().requires_grad_()`), take torch.autograd.grad, or name it in `backward(inputs=[...])` "
                f"to accumulate the sum over the samples."
            )


def leaves_of(tensors: Any, ends: bool = False) -> Iterator[Any]:
    """Iterate over the physical leaves that require grad in the graph of some tensors.

    With ``ends``, iterate also over nodes that lead to none: AOTAutograd gives such a node to the inputs of what it traces.
    """
    for node in nodes_of(tensors):
        if isinstance(node, torch.Tensor):
            yield node
        elif type(node) is AccumulateGrad:
            yield node.variable
        elif ends and not node.next_functions:
            yield node


def nodes_of(tensors: Any, stop: Iterable[Any] = ()) -> Iterator[Any]:
    """Iterate over the nodes of the graph of some tensors, up to some, and over those of the tensors that are leaves."""
    seen: set[Any] = set()
    passed = set(stop)
    for t in tensors:
        while type(t) is BatchedTensor:
            t = t._value
        if isinstance(t, GradientEdge):
            seen.add(node_of(t))
        elif t.grad_fn is not None:
            seen.add(t.grad_fn)
        elif t.requires_grad:
            yield t
    todo = list(seen - passed)
    seen |= passed
    while todo:
        node: Any = todo.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
