"""Mapping a batch in chunks, to bound memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import _tree
from ._randomness import generator_state, set_generator_state


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
        randomness: under ``"same"`` every chunk starts from the same state of the generators.
    """
    starts = range(0, size, chunk_size) if size else [0]
    outputs: list[list[Any]] = []
    spec: Any = None
    generators = _Generators() if randomness == "same" and len(starts) > 1 else None
    with generators or contextlib.nullcontext():
        for start in starts:
            if generators is not None:
                generators.rewind()
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


class _Generators(TorchFunctionMode):
    """Notes where the generators stand: the default ones now, those given to a call when it comes by."""

    def __init__(self) -> None:
        super().__init__()
        found = [torch.default_generator]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found += torch.cuda.default_generators
        self.states = {g: generator_state(g) for g in found}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for a in (*args, *kwargs.values()):
            if isinstance(a, torch.Generator) and a not in self.states:
                self.states[a] = generator_state(a)
        return func(*args, **kwargs)

    def rewind(self) -> None:
        for generator, state in self.states.items():
            set_generator_state(generator, state)
