"""Tensors whose samples were parts of others before: their gradients are asked of those.

A group of samples (see `dispatch.rows`) goes on with a copy of its samples' tensors. What was computed before depends on the
tensor that was copied, and what comes after on both; so the gradient with respect to the copy is that of the tensor, at its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Piece:
    """Some samples of a tensor, of which another one is a copy.

    Attributes:
        tensor: the physical tensor.
        bdim: its batch dim; None where all samples share it.
        samples: which of its samples.
        places: where they are in the other one, whose batch dim is the first.
    """

    tensor: Any
    bdim: int | None
    samples: Any
    places: Any


def gradients(inputs: Sequence[Any], take: Callable[[list[Any], bool], Sequence[Any]], allow_unused: bool) -> list[Any]:
    """Return gradients with respect to physical tensors.

    Args:
        inputs: the tensors; those that are copies know of what (``_vmap_pieces``).
        take: returns the gradients with respect to the tensors that it is given, some None if it is told that they may be.
        allow_unused: whether one of these may be.
    """
    if not any(hasattr(x, "_vmap_pieces") for x in inputs):
        return list(take(list(inputs), allow_unused))
    of = [getattr(x, "_vmap_pieces", None) for x in inputs]
    flat = [t for x, pieces in zip(inputs, of, strict=True) for t in ([x] if pieces is None else [p.tensor for p in pieces])]
    found = iter(take(flat, True))
    out = []
    for x, pieces in zip(inputs, of, strict=True):
        grads = [next(found) for _ in pieces or (x,)]
        if all(g is None for g in grads):
            out.append(None if allow_unused else take([x], False)[0])  # with PyTorch's error
        elif pieces is None:
            out.append(grads[0])
        else:
            total = x.new_zeros(x.shape)
            for g, piece in zip(grads, pieces, strict=True):
                if g is not None:
                    rows = g.movedim(piece.bdim, 0).index_select(0, piece.samples.to(g.device))
                    total = total.index_add(0, piece.places.to(g.device), rows)
            out.append(total)
    return out
