"""`torch.autograd.grad` inside a mapped function.

Autograd records the physical operations, below vmap. So a gradient inside is an ordinary gradient of physical tensors,
and what is to be decided is only how the samples are kept apart:

- an input with a batch dim: its samples are apart already, one physical backward pass serves them all;
- an input that all samples share, reached from unbatched outputs with batched ``grad_outputs`` (rows of a Jacobian):
  the engine runs once, on lowered vectors;
- an input that all samples share, reached from batched outputs: one lowered vector per sample picks that sample's
  outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vmap_core import vmap
from vmap_core.extend import (
    BatchedTensor,
    ComplexGraphError,
    Level,
    RulePack,
    call,
    ensure_bdim,
    exchange,
    exchanged,
    gradients,
    make_batched,
    mapped,
    run_lowered,
    same_storage,
    settled,
    unwrap,
    user_location,
    wrap,
)

from ._torch import transforms_active
from ._walk import batched_vjp
from .edges import is_of_outer_level, stand_in, unwrap_edges

pack = RulePack("autograd.grad")


@pack.logical(torch.autograd.grad)
def grad(
    info: Level,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor] | dict[str, Tensor],
    grad_outputs: Sequence[Tensor | None] | Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> Any:
    """Per-sample gradients: (outputs, inputs, grad_outputs), each batched or not -> gradients of the inputs."""
    if type(inputs) is dict:
        given = (grad_outputs, retain_graph, create_graph, only_inputs, allow_unused, is_grads_batched)
        grads = grad(info, outputs, tuple(inputs.values()), *given, materialize_grads)
        return dict(zip(inputs, grads, strict=True))
    outputs, inputs = as_tuple(outputs), as_tuple(inputs)
    vectors = as_tuple(grad_outputs) if grad_outputs is not None else (None,) * len(outputs)
    keep = create_graph if retain_graph is None else retain_graph
    options: dict[str, Any] = {
        "create_graph": create_graph,
        "allow_unused": allow_unused,
        "materialize_grads": materialize_grads,
    }
    if is_grads_batched:
        return _batched_vectors(info, outputs, inputs, vectors, keep, options)
    out_values, out_dims = unwrap_edges(info, outputs)
    in_values, in_dims = unwrap_edges(info, inputs)
    seeds = [seed(info, o, v, i) for i, (o, v) in enumerate(zip(outputs, vectors, strict=True))]
    shared = [i for i, d in enumerate(in_dims) if d is None]
    own = [i for i, d in enumerate(in_dims) if d is not None]
    results: list[Any] = [None] * len(inputs)
    if own:
        # Unbatched outputs do not depend on batched inputs; alone, they go along for PyTorch's error.
        at = [i for i, d in enumerate(out_dims) if d is not None]
        own_seeds = [aligned(info, seeds[i], out_dims[i]) for i in at]
        if not at:
            at = list(range(len(outputs)))
            own_seeds = [torch.zeros_like(stand_in(o)) for o in out_values]
        grads = gradients(
            [in_values[i] for i in own],
            lambda inputs, allow: torch.autograd.grad(
                [out_values[i] for i in at], inputs, own_seeds,
                retain_graph=keep or bool(shared), **{**options, "allow_unused": allow},
            ),
            allow_unused or (allow_unused is None and materialize_grads),
        )  # fmt: skip
        for i, g in zip(own, grads, strict=True):
            results[i] = None if g is None else wrap(info, *settled(g, in_dims[i]))
    if shared:
        if any(d is not None for d in out_dims):
            seeds = _one_vector_per_sample(info, seeds, out_dims)
        grads = _through_shared_graph(info, out_values, [in_values[i] for i in shared], seeds, keep, options)
        for i, g in zip(shared, grads, strict=True):
            results[i] = g
    return tuple(results)


def as_tuple(x: Any) -> tuple[Any, ...]:
    """Return one tensor or edge, or a sequence of them, as a tuple."""
    return (x,) if isinstance(x, Tensor | GradientEdge) else tuple(x)


def seed(info: Level, output: Any, vector: Any, number: int = 0) -> Any:
    """Return the vector for an output, as the mapped function sees it; ones for a scalar.

    Raises:
        RuntimeError: there is none and the output is no scalar, or the shapes differ, as without vmap.
    """
    output = stand_in(output)
    if vector is None:
        if output.numel() != 1:
            raise RuntimeError("grad can be implicitly created only for scalar outputs")
        if type(output) is BatchedTensor and output._level is info:
            return wrap(info, torch.ones_like(output._value), output._bdim)
        return torch.ones_like(output)
    if vector.shape != output.shape:
        raise RuntimeError(
            f"Mismatch in shape: grad_output[{number}] has a shape of {vector.shape} and output[{number}] has a shape of "
            f"{output.shape}."
        )
    return vector


def aligned(info: Level, x: Any, bdim: int) -> Any:
    """Return a physical value with its batch dim at ``bdim``, an unbatched one expanded."""
    value, dim = unwrapped(info, x)
    return value if dim == bdim else ensure_bdim(value, dim, info.batch_size).movedim(0, bdim)


def unwrapped(info: Level, x: Any) -> tuple[Any, int | None]:
    """Return the physical value and batch dim of one tensor."""
    (value,), (bdim,), _ = unwrap(info, (x,))
    return value, bdim


def _batched_vectors(
    info: Level, outputs: Any, inputs: Any, vectors: Any, keep: bool, options: dict[str, Any]
) -> tuple[Any, ...]:
    """``is_grads_batched=True``: one more vmap, over the leading dim of the vectors."""

    def rows(*vectors: Any) -> Any:
        return torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, **options)

    given = [v for v in vectors if v is not None]
    if not given:
        raise RuntimeError("is_grads_batched=True requires grad_outputs")
    with info.pushed():
        grads = vmap(rows, in_dims=tuple(None if v is None else 0 for v in vectors))(*vectors)
    return tuple(grads)


def _one_vector_per_sample(info: Level, vectors: Any, out_dims: Any) -> list[Any]:
    """Return vectors that pick a sample: for each physical batched output, ``batch_size`` of the output's own shape.

    Vector ``i`` is zero but in sample ``i``. An unbatched output is every sample's own: its vector stays.
    """
    warnings.warn(
        f"vmap: torch.autograd.grad at {user_location()} differentiates with respect to a tensor from outside the "
        f"mapped function. This takes one vector per sample; `w = w.detach().requires_grad_()` inside the function, "
        f"before it is used, makes per-sample gradients cost one backward pass.",
        stacklevel=2,
    )
    size = info.batch_size
    results = []
    for vector, bdim in zip(vectors, out_dims, strict=True):
        if bdim is None:
            results.append(vector)
            continue
        value = aligned(info, vector, bdim)
        eye = torch.eye(size, dtype=torch.bool, device=value.device)
        mask = eye.reshape(size, *(size if d == bdim else 1 for d in range(value.ndim)))
        results.append(make_batched(torch.where(mask, value, torch.zeros_like(value)), 0, info))
    return results


def _through_shared_graph(
    info: Level, outputs: Any, inputs: Any, vectors: Any, keep: bool, options: dict[str, Any]
) -> tuple[Any, ...]:
    """Run the engine once, with all samples' vectors: its formulas reach us through the dispatcher.

    Args:
        info: the level of the vectors.
        outputs: physical outputs, which are unbatched at that level as far as autograd is concerned.
        inputs: physical inputs.
        vectors: one for each output, batched or not.
        keep: whether to retain the graph.
        options: further ones of torch.autograd.grad.
    """
    values, _, batched = unwrap(info, tuple(vectors))
    if not batched:
        grads = torch.autograd.grad(outputs, inputs, values, retain_graph=keep, **options)
        return tuple(None if g is None else wrap(info, g, None) for g in grads)
    if any(is_of_outer_level(t) for t in (*outputs, *inputs)):
        return _below_outer_level(info, outputs, inputs, vectors, keep, options)

    if transforms_active():  # of torch.func, which would record the lowered operations
        return _in_a_loop(info, outputs, inputs, vectors, keep, options)

    edges = any(isinstance(t, GradientEdge) for t in (*outputs, *inputs))
    if not edges and all(type(v) is not BatchedTensor for v in values) and not options["materialize_grads"]:
        fronts = [aligned(info, v, 0) for v in vectors]
        found = batched_vjp(
            outputs,
            inputs,
            fronts,
            keep=keep,
            create_graph=options["create_graph"],
            allow_unused=options["allow_unused"],
        )
        if found is not None:
            return tuple(None if g is None else _of_vectors(info, g, fronts) for g in found)

    def engine(*lowered: Any) -> Any:
        return torch.autograd.grad(outputs, inputs, lowered, retain_graph=keep, **options)

    try:
        grads = run_lowered(info, engine, tuple(vectors), {}, mode=False)
    except ComplexGraphError:
        return _in_a_loop(info, outputs, inputs, vectors, keep, options)
    return tuple(g if type(g) is BatchedTensor or g is None else wrap(info, g, None) for g in grads)


def _of_vectors(info: Level, grad: Any, vectors: Sequence[Any]) -> Any:
    """Wrap a gradient with the batch dim in front; it may be a vector itself, or a view of one."""
    if any(same_storage(grad, v) for v in vectors):
        return mapped(grad, 0, info)
    return wrap(info, *settled(grad, 0))


def _in_a_loop(
    info: Level, outputs: Any, inputs: Any, vectors: Any, keep: bool, options: dict[str, Any]
) -> tuple[Any, ...]:
    """Run the engine once a sample."""
    rows = zip(*(ensure_bdim(*unwrapped(info, v), info.batch_size) for v in vectors), strict=True)
    grads = [torch.autograd.grad(outputs, inputs, row, retain_graph=True, **options) for row in rows]
    if not grads:
        return tuple(wrap(info, x.new_zeros((0, *x.shape)), 0) for x in map(stand_in, inputs))
    return tuple(None if g[0] is None else wrap(info, torch.stack(g), 0) for g in zip(*grads, strict=True))


def _below_outer_level(
    info: Level, outputs: Any, inputs: Any, vectors: Any, keep: bool, options: dict[str, Any]
) -> tuple[Any, ...]:
    """Do it where the graph carries an outer level's batch dim: that level goes first, with this one outside it.

    The engine works on physical tensors, so a vector needs the outer level's dim as its outputs have it. With the two
    levels exchanged, the outer one's own rule aligns them, and what is left for this level is an ordinary graph.
    """
    with exchanged(info) as outer:
        args = tuple(outputs), tuple(inputs), [exchange(v, info, outer) for v in vectors]
        grads = call(outer, torch.autograd.grad, args, {"retain_graph": keep, **options})
    return tuple(None if g is None else exchange(g, outer, info) for g in grads)
