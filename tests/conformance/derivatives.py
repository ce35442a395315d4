"""Derivatives inside the mapped function: vmap of vjp and of jvp, in PyTorch's plain API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad

Function = Callable[..., list[Any]]


def _differentiable(x: Any) -> bool:
    return bool(x.is_floating_point() or x.is_complex())


def _weights(x: Any) -> Any:
    """Return a vector of a tensor's shape that is not the same everywhere."""
    count = x.numel()
    return torch.linspace(0.5, 1.5, max(count, 1), dtype=torch.float64)[:count].reshape(x.shape).to(x.dtype)


def _of_the_peer(tensors: tuple[Any, ...]) -> bool:
    return any(torch._C._functorch.is_batchedtensor(t) for t in tensors if type(t) is torch.Tensor)


def vjp(function: Function) -> Function:
    """Return a function that computes the function and its vjp: outputs, then gradients of floating inputs."""

    def run(*tensors: Any) -> list[Any]:
        at = [i for i, t in enumerate(tensors) if _differentiable(t)]
        if _of_the_peer(tensors):
            return _peer_vjp(function, tensors, at)
        inputs = [t.detach().requires_grad_() if i in at else t for i, t in enumerate(tensors)]
        # Not the leaves themselves: some functions write to their input.
        outputs = function(*(t.clone() if i in at else t for i, t in enumerate(inputs)))
        used = [o for o in outputs if o.requires_grad]
        grads: Any = [None] * len(at)
        if used:
            vectors = [_weights(o) for o in used]
            grads = torch.autograd.grad(used, [inputs[i] for i in at], vectors, allow_unused=True)
        filled = [torch.zeros_like(inputs[i]) if g is None else g for i, g in zip(at, grads, strict=True)]
        return [x.detach() for x in (*outputs, *filled)]

    return run


def _peer_vjp(function: Function, tensors: tuple[Any, ...], at: list[int]) -> list[Any]:
    def of_some(*some: Any) -> Any:
        filled = list(tensors)
        for i, t in zip(at, some, strict=True):
            filled[i] = t.clone()
        out = function(*filled)
        return tuple(o for o in out if _differentiable(o)), [o for o in out if not _differentiable(o)]

    outputs, pull, others = torch.func.vjp(of_some, *(tensors[i] for i in at), has_aux=True)
    return [*outputs, *others, *pull(tuple(_weights(o) for o in outputs))]


def of_vectors(function: Function, tensors: list[Any]) -> tuple[Function, list[Any]] | None:
    """Return the vjp at one sample as a function of vectors alone, and vectors; None if nothing requires grad.

    The graph is one that all vectors share: what is mapped is the backward pass.
    """
    inputs = [t.detach().clone().requires_grad_(_differentiable(t)) for t in tensors]
    try:
        outputs = [o for o in function(*(t.clone() for t in inputs)) if o.requires_grad]
    except RuntimeError as error:
        if "not differentiable" not in str(error):  # some arguments are not: running statistics, class weights
            raise
        inputs = [t.detach().clone().requires_grad_(not i) for i, t in enumerate(tensors)]
        outputs = [o for o in function(*(t.clone() for t in inputs)) if o.requires_grad]
    leaves = [t for t in inputs if t.requires_grad]
    if not outputs or not leaves:
        return None

    def run(*vectors: Any) -> list[Any]:
        grads = torch.autograd.grad(outputs, leaves, vectors, retain_graph=True, allow_unused=True)
        return [g for g in grads if g is not None]

    return run, [_weights(o) for o in outputs]


def jvp(function: Function) -> Function:
    """Return a function that computes the function and its jvp: outputs, then their tangents."""

    def run(*tensors: Any) -> list[Any]:
        at = [i for i, t in enumerate(tensors) if _differentiable(t)]
        if _of_the_peer(tensors):
            return _peer_jvp(function, tensors, at)
        with torch.no_grad(), forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t, _weights(t)).clone() if i in at else t for i, t in enumerate(tensors)
            ]  # fmt: skip
            pairs = [forward_ad.unpack_dual(o) for o in function(*duals)]
            floating = [p for p in pairs if _differentiable(p.primal)]
            tangents = [torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in floating]
            return [*(p.primal for p in pairs), *tangents]

    return run


def _peer_jvp(function: Function, tensors: tuple[Any, ...], at: list[int]) -> list[Any]:
    def of_some(*some: Any) -> Any:
        filled = list(tensors)
        for i, t in zip(at, some, strict=True):
            filled[i] = t.clone()
        out = function(*filled)
        return tuple(o for o in out if _differentiable(o)), [o for o in out if not _differentiable(o)]

    given = tuple(tensors[i] for i in at)
    outputs, tangents, others = torch.func.jvp(of_some, given, tuple(map(_weights, given)), has_aux=True)
    return [*outputs, *others, *tangents]
