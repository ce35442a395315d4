"""Mapping a batch in chunks, to bound memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import _tree


def run_in_chunks(
    run: Callable[[int, list[Any]], Any],
    size: int,
    chunk_size: int,
    leaves: list[Any],
    dims: list[int | None],
    out_dims: Any,
    randomness: str,
) -> Any:
    """Run a mapped call on chunks of the batch and join the outputs.

    Args:
        run: maps ``(batch size, inputs)``.
        size: the batch size; an empty batch is one chunk.
        chunk_size: samples a chunk, at most.
        leaves: the flat inputs.
        dims: their batch dims.
        out_dims: as given to vmap. An output with None does not depend on the sample: the first chunk's is returned.
        randomness: under ``"same"`` every chunk starts from the same state of the default generators.
    """
    starts = range(0, size, chunk_size) if size else [0]
    outputs: list[list[Any]] = []
    spec: Any = None
    with _rewound(randomness == "same") as rewind:
        for start in starts:
            rewind()
            length = min(chunk_size, size - start)
            chunk = [leaf if d is None else leaf.narrow(d, start, length) for leaf, d in zip(leaves, dims, strict=True)]
            flat: list[Any] = []
            spec = _tree.flatten(run(length, chunk), flat)
            outputs.append(flat)
    if len(outputs) == 1:
        return _tree.unflatten(spec, iter(outputs[0]))
    is_single = isinstance(out_dims, tuple) and spec is None and len(out_dims) == 1
    places = list(out_dims) if is_single else _tree.broadcast(out_dims, spec)
    assert places is not None  # the chunks' own calls have checked it
    joined = []
    for parts, dim in zip(zip(*outputs, strict=True), places, strict=True):
        joined.append(torch.cat(parts, dim) if dim is not None and isinstance(parts[0], Tensor) else parts[0])
    return _tree.unflatten(spec, iter(joined))


@contextlib.contextmanager
def _rewound(wanted: bool) -> Iterator[Callable[[], None]]:
    """Give a function that, from its second call on, puts the default generators back to where they were."""
    if not wanted:
        yield lambda: None
        return
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    state: list[Any] = []

    def rewind() -> None:
        if not state:
            state.extend([torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else None])
            return
        torch.set_rng_state(state[0])
        if cuda:
            torch.cuda.set_rng_state_all(state[1])

    yield rewind
