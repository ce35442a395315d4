"""Derivatives of a transform's own graph, taken below all levels: on physical tensors, for every vector at once.

The outputs and inputs of a trace have known batch dims. So what the levels' rules for `torch.autograd.grad` would do one
after the other is known at once: vectors get the batch dims of their outputs, and what further ones they have is a batch
of vectors (`_walk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import (
    ComplexGraphError,
    Level,
    below_levels,
    current_levels,
    current_recorder,
    lowered_map,
    make_batched,
    mapped,
    same_storage,
    without_modes,
    wrap,
)

from ._torch import transforms_active
from ._walk import batched_vjp

Dims = dict[Level, int]


def gradients_below(
    outputs: Sequence[Any], inputs: Sequence[Any], vectors: Sequence[Any] | None, *, keep: bool, create: bool, hooks: int,
    of_linear: bool = False,
) -> list[Any] | None:  # fmt: skip
    """Return the gradients, None where no output depends on an input; None to leave it to the levels' rules.

    Args:
        outputs: tensors that require grad.
        inputs: tensors that they may depend on.
        vectors: one for each output; None for ones.
        keep: whether to retain the graph.
        create: whether to record the backward pass.
        hooks: `hooks_made` before the graph was recorded.
        of_linear: a linear map of tangents is what is wanted in the end: where outputs have batch dims that inputs do
            not have, or the other way round, the sum over samples is right.
    """
    levels = current_levels()
    if not levels or current_recorder() is not None or transforms_active():
        return None
    starts, places = zip(*map(below_levels, inputs), strict=True)
    ends, end_places = zip(*map(below_levels, outputs), strict=True)
    at = [*range(len(ends))]
    if not of_linear:
        own = places[0].keys()
        if any(dims.keys() != own for dims in places) or any(dims.keys() - own for dims in end_places):
            return None
        at = [i for i in at if end_places[i].keys() == own]  # no other depends on an input
        if not at:
            return [None] * len(inputs)
    given = [None if vectors is None else below_levels(vectors[i]) for i in at]
    if any(v is not None and type(v[0]) is not Tensor for v in given):
        return None
    if vectors is not None and any(outputs[i].shape != vectors[i].shape for i in at):
        return None  # to be told
    further = {
        level for i, v in zip(at, given, strict=True) if v is not None for level in v[1].keys() - end_places[i].keys()
    }
    hidden = [level for level in levels if level in further]
    if len(hidden) < len(further):  # one is no longer active
        return None
    tensors = [ends[i] for i in at]
    with without_modes():
        seeds = [
            torch.ones_like(ends[i]) if v is None else _like(*v, ends[i], end_places[i], hidden)
            for i, v in zip(at, given, strict=True)
        ]
        if not hidden:
            grads: Any = _engine(tensors, starts, seeds, keep, create)
        else:
            grads = batched_vjp(tensors, starts, seeds, keep=keep, create_graph=create, allow_unused=True, hooks=hooks)
            if grads is None and of_linear:
                grads = _by_the_engine(tensors, starts, seeds, create)
            if grads is None:
                return None
        found = [None if g is None else _found(g, dims, hidden) for g, dims in zip(grads, places, strict=True)]
        aliases = [any(same_storage(g, v) for v in seeds) for g in grads]
    return [None if f is None else _at_levels(*f, levels, alias) for f, alias in zip(found, aliases, strict=True)]


def _engine(outputs: Any, inputs: Any, vectors: Any, keep: bool, create: bool) -> Sequence[Any]:
    return torch.autograd.grad(outputs, inputs, vectors, retain_graph=keep, create_graph=create, allow_unused=True)


def _by_the_engine(outputs: Any, inputs: Any, rows: Any, create: bool) -> list[Any]:
    """Let the engine do it for a batch of vectors, lowered; or for one after the other."""
    unused: list[bool] = []

    def run(lowered: Any) -> list[Any]:
        grads = _engine(outputs, inputs, lowered, True, create)
        unused[:] = [g is None for g in grads]
        return [g for g in grads if g is not None]

    try:
        found = iter(lowered_map(run, rows))
    except ComplexGraphError:
        each = [_engine(outputs, inputs, row, True, create) for row in zip(*rows, strict=True)]
        return [None if None in parts else torch.stack(parts) for parts in zip(*each, strict=True)]
    return [None if none else next(found) for none in unused]


def _like(v: Any, dims: Dims, output: Any, its: Dims, hidden: list[Level]) -> Any:
    """Return a vector with the batch dims of an output, where it has them; the hidden ones as one, in front of them."""
    first, count = [*hidden, *its], len(hidden)
    order = [dims[level] for level in first if level in dims]
    if order != [*range(len(order))]:
        v = v.permute([*order, *(d for d in range(v.ndim) if d not in order)])
    for i, level in enumerate(first):
        v = v if level in dims else v.unsqueeze(i)
    places = [d + count for d in its.values()]
    if places != [*range(count, len(first))]:
        v = v.movedim([*range(count, len(first))], places)
    v = v.expand([*(level.batch_size for level in hidden), *output.shape])
    return v.flatten(0, count - 1) if count > 1 else v


def _found(grad: Any, dims: Dims, hidden: list[Level]) -> tuple[Any, Dims]:
    """Return a gradient for a batch of vectors, with all batch dims that it has; of a sample's vector, that sample's."""
    if not hidden or (len(hidden) == 1 and not dims):
        return grad, dict.fromkeys(hidden, 0) or dims
    if len(hidden) > 1:
        grad = grad.unflatten(0, [level.batch_size for level in hidden])
    places = [*hidden, *([None] * (grad.ndim - len(hidden)))]
    for level, d in dims.items():
        places[d + len(hidden)] = level
    for level in hidden:
        if level in dims:
            first, second = (d for d, other in enumerate(places) if other is level)
            grad = grad.diagonal(0, first, second)
            places = [other for other in places if other is not level] + [level]
    return grad, {level: d for d, level in enumerate(places) if level is not None}


def _at_levels(value: Any, dims: Dims, levels: list[Level], alias: bool) -> Any:
    """Return a physical tensor at levels, each with the dim that is its batch dim: the inverse of `below_levels`."""
    done: list[int] = []
    in_order = value.is_contiguous()  # then so is every sample
    for level in levels:
        d = dims.get(level)
        if d is None:
            value = wrap(level, value, None)
            continue
        bdim = d - sum([other < d for other in done])
        done.append(d)
        if alias:
            value = mapped(value, bdim, level)
        else:
            value = make_batched(value, bdim, level) if in_order else wrap(level, value, bdim)
    return value
