"""`per_sample_grads`: the gradient of every sample's loss by every parameter, in one backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vmap_core import vmap
from vmap_core.extend import leaves, map_leaves

from ._state import takes_derivatives, usable
from ._torch import tree_flatten, tree_unflatten


def per_sample_grads(
    model: nn.Module | Callable[..., Any],
    loss: Callable[..., Any],
    *,
    norms: bool = False,
    each: Callable[[str, Tensor], Any] | None = None,
    batch_of_one: bool = False,
    chunk_size: int | None = None,
    randomness: str = "error",
) -> Callable[..., Any]:
    """Return a function that computes per-sample gradients of a loss by the parameters of a model.

    The forward pass is the model's ordinary one over the whole batch: all samples share the parameters. Only their
    gradients are per sample.

    Args:
        model: a module, called with one sample; or a function ``(params, x) -> output``.
        loss: ``(output, y) -> scalar``, or ``(output) -> scalar`` when no ``y`` is given, for one sample.
        norms: give the 2-norm of each sample's gradient, ``(B)`` a parameter, instead of the gradient. A gradient is
            freed before the backward pass goes on, so memory stays flat in the number of parameters.
        each: called as ``each(name, gradients)`` with ``(B, *parameter.shape)`` as soon as a parameter's gradients
            are known; its results are given instead, and the gradients are freed, as with ``norms``.
        batch_of_one: give the model samples of shape ``(1, *)``, and the loss too: for models that insist on a batch.
        chunk_size: samples at a time; the results of chunks are concatenated.
        randomness: ``"error"``, ``"same"`` or ``"different"``, as for vmap: what dropout and the like may do.

    Returns:
        For a module, a function ``(x, y) -> {name: (B, *parameter.shape)}`` over its parameters that require grad;
        ``x`` may be a tuple of the module's arguments, and ``x`` and ``y`` trees of tensors ``(B, *)``. For a
        function, ``(params, x, y) -> `` a tree like ``params``.

    Raises:
        ValueError: ``norms`` and ``each`` are both given, or ``x`` holds no tensor.
        RuntimeError: the loss of a sample is no scalar.

    Examples:
        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from vmap_autograd import per_sample_grads
        >>> model = torch.nn.Linear(3, 1)
        >>> grads = per_sample_grads(model, mse_loss)(torch.randn(5, 3), torch.randn(5, 1))
        >>> {name: tuple(g.shape) for name, g in grads.items()}
        {'weight': (5, 1, 3), 'bias': (5, 1)}
    """
    if norms and each is not None:
        raise ValueError("per_sample_grads: norms=True says what to do with each gradient, and so does each=")
    if norms:
        each = _norm

    def from_module(x: Any, y: Any = None) -> Any:
        assert isinstance(model, nn.Module)
        params = {name: p for name, p in model.named_parameters() if p.requires_grad}

        def call(params: Any, x: Any) -> Any:
            return functional_call(model, params, x if isinstance(x, tuple) else (x,))

        return gradients(call)(params, x, y)

    def from_function(params: Any, x: Any, y: Any = None) -> Any:
        return gradients(model)(params, x, y)

    def gradients(call: Callable[..., Any]) -> Callable[..., Any]:
        def sample_loss(params: Any, x: Any, y: Any) -> Any:
            if batch_of_one:
                x, y = map_leaves(lambda t: t.unsqueeze(0) if isinstance(t, Tensor) else t, (x, y))
            out = call(params, x)
            return loss(out) if y is None else loss(out, y)

        return gradients_of(sample_loss, each, chunk_size, randomness)

    return from_module if isinstance(model, nn.Module) else from_function


def gradients_of(sample_loss: Callable[..., Any], each: Any, chunk_size: int | None, randomness: Any) -> Any:
    """Return a function ``(params, x, y) ->`` a tree like ``params``, of a loss ``(params, x, y)`` of one sample."""

    @takes_derivatives
    def gradients(params: Any, x: Any, y: Any) -> Any:
        sizes = {t.shape[0] for t in leaves((x, y)) if isinstance(t, Tensor)}
        if len(sizes) != 1:
            raise ValueError(f"per_sample_grads: expected tensors (B, *) with one batch size B, got sizes {sizes}")
        size = sizes.pop()
        params, x, y = map_leaves(lambda t: usable(t) if isinstance(t, Tensor) else t, (params, x, y))
        dims = map_leaves(lambda t: 0 if isinstance(t, Tensor) else None, (x, y))
        losses = vmap(sample_loss, in_dims=(0, *dims), randomness=randomness)
        flat, spec = tree_flatten(params)
        names = list(params) if isinstance(params, dict) else [str(i) for i in range(len(flat))]
        chunks = []
        for start in range(0, max(size, 1), chunk_size or max(size, 1)):
            part = slice(start, start + (chunk_size or size))
            own = map_leaves(functools.partial(_part, part), (x, y))
            chunks.append(_of_chunk(losses, flat, spec, names, own, each))
        joined = chunks[0] if len(chunks) == 1 else [_join(parts) for parts in zip(*chunks, strict=True)]
        return tree_unflatten(joined, spec)

    return gradients


def _part(part: slice, t: Any) -> Any:
    return t[part] if isinstance(t, Tensor) else t


def _of_chunk(losses: Any, params: list[Any], spec: Any, names: list[str], xy: Any, each: Any) -> list[Any]:
    size = next(t.shape[0] for t in leaves(xy) if isinstance(t, Tensor))
    results: dict[int, Any] = {}
    with torch.enable_grad():
        starts = [p.detach().expand(size, *p.shape).requires_grad_() for p in params]
        if each is not None:
            for i, leaf in enumerate(starts):
                leaf.register_hook(_handler(each, names[i], results, i))
        values = losses(tree_unflatten(starts, spec), *xy)
    if values.ndim != 1:
        raise RuntimeError(
            f"per_sample_grads: the loss of a sample must be a scalar, got shape {tuple(values.shape[1:])}"
        )
    grads = torch.autograd.grad(values, starts, torch.ones_like(values), allow_unused=True)
    if each is None:
        return [torch.zeros_like(p) if g is None else g for p, g in zip(starts, grads, strict=True)]
    return [
        results[i] if i in results else each(names[i], torch.zeros_like(p))
        for i, p in enumerate(map(Tensor.detach, starts))
    ]


def _handler(each: Any, name: str, results: dict[int, Any], i: int) -> Callable[[Tensor], Tensor]:
    def handle(grad: Tensor) -> Tensor:
        results[i] = each(name, grad)
        return grad.new_zeros(()).expand(grad.shape)  # what autograd keeps: nothing

    return handle


def _norm(name: str, grad: Tensor) -> Tensor:
    return torch.linalg.vector_norm(grad.flatten(1), dim=1)


def _join(parts: tuple[Any, ...]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else list(parts)
