"""Tensors whose samples were parts of others before: their gradients are asked of those.

A group of samples (see `dispatch.rows`) goes on with a copy of its samples' tensors. What was computed before depends on the
tensor that was copied, and what comes after on both; so the gradient with respect to the copy is that of the tensor, at its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UnsupportedError, user_location


@dataclass
class Piece:
    """Some samples of a tensor, of which another one is a copy.

    Attributes:
        tensor: the physical tensor.
        dims: its batch dims; none where all samples share it.
        samples: for each, which of its samples (n).
        places: where they are in the other one, whose batch dim is the first (n).
    """

    tensor: Any
    dims: tuple[int, ...]
    samples: tuple[Any, ...]
    places: Any

    def at(self, where: Any) -> Piece | None:
        """Return what of it there is among some samples of the other one; None for nothing.

        Args:
            where: for each sample of that one its number among them, or -1.
        """
        places = where[self.places]
        kept = places >= 0
        if not kept.any():
            return None
        return Piece(self.tensor, self.dims, tuple(s[kept] for s in self.samples), places[kept])


def pieces_of(value: Any, dims: Sequence[int], size: int) -> list[Piece]:
    """Return the pieces that a physical tensor with one batch dim, or none, is made of: itself, unless it is a copy."""
    if not value.requires_grad:
        return []
    every = torch.arange(size)
    known: Any = getattr(value, "_vmap_pieces", None)
    return [Piece(value, tuple(dims), (every,) * len(dims), every)] if known is None else known


def remember(new: Any, value: Any, dims: Sequence[int], samples: Sequence[Any]) -> None:
    """Remember of what a tensor is a copy, for its gradient.

    Args:
        new: the copy, its batch dim the first.
        value: the physical tensor.
        dims: its batch dims.
        samples: for each, which of its samples (n).
    """
    if not new.requires_grad or not dims:
        return
    if len(dims) > 1:
        new._vmap_pieces = [Piece(value, tuple(dims), tuple(samples), torch.arange(len(samples[0])))]
        return
    where = samples[0].new_full((value.shape[dims[0]],), -1)
    where[samples[0]] = torch.arange(len(samples[0]))
    found = [piece.at(where) for piece in pieces_of(value, dims, value.shape[dims[0]])]
    new._vmap_pieces = [piece for piece in found if piece is not None]


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
    flat = [
        t for x, pieces in zip(inputs, of, strict=True) for t in ([x] if pieces is None else [p.tensor for p in pieces])
    ]
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
                if not piece.dims:
                    raise UnsupportedError(
                        f"vmap: the gradient, at {user_location()}, with respect to a tensor that is another one for some samples than for "
                        f"others, and that all of some share. Instead: let each sample have its own (x.clone(), or in_dims)."
                    )
                if g is not None:
                    rest = [d for d in range(g.ndim) if d not in piece.dims]
                    rows = g.permute(*piece.dims, *rest)[tuple(s.to(g.device) for s in piece.samples)]
                    total = total.index_add(0, piece.places.to(g.device), rows)
            out.append(total)
    return out
