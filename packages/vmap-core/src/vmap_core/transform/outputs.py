"""The outputs of a mapped function, as their physical values with the batch dim where it is wanted."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..levels import tree as _tree
from ..levels.level import Level
from ..levels.read import alive
from ..levels.tensor import BatchedTensor
from ..torch_compat.trees import tree_flatten


def unwrapped(out: Any, out_dim: int | None, level: Level) -> Any:
    """Return one output as its physical value, the batch dim where it is wanted."""
    value, bdim = out, None
    if type(out) is BatchedTensor:
        value, bdim = (out._value, out._bdim) if out._level is level else (alive(out), None)
    if out_dim is None:
        if bdim is not None:
            raise ValueError(
                f"vmap({level.name}, ...): `{level.name}` can not return a BatchedTensor when out_dim is None"
            )
        return value
    if out is None:
        return None
    if not isinstance(value, Tensor):
        raise ValueError(
            f"vmap({level.name}, ...): `{level.name}` must only return Tensors, got type {type(out)}. "
            "Did you mean to set out_dims= to None for output?"
        )
    if bdim is None:
        value, bdim = value.expand(level.batch_size, *value.shape), 0
    return value if bdim == out_dim else value.movedim(bdim, int(out_dim))


def unwrapped_tree(out: Any, out_dims: Any, level: Level) -> Any:
    """Return a tree of outputs as one of their physical values."""
    leaves: list[Any] = []
    spec = _tree.flatten(out, leaves)
    if isinstance(out_dims, tuple) and spec is None and len(out_dims) == 1:
        dims: list[Any] | None = list(out_dims)
    else:
        dims = _tree.broadcast(out_dims, spec)
    if dims is None:
        raise ValueError(
            f"vmap({level.name}, ..., out_dims={out_dims})(<inputs>): out_dims is not compatible with the structure "
            f"of `outputs`. out_dims has structure {tree_flatten(out_dims)[1]} but outputs has structure "
            f"{tree_flatten(out)[1]}."
        )
    spec = _tree.with_dim(spec, dims, level.batch_size, out_dims)
    values = [
        o._value
        if type(o) is BatchedTensor and o._level is level and o._bdim == d is not None
        else unwrapped(o, d, level)
        for o, d in zip(leaves, dims, strict=True)
    ]
    return _tree.unflatten(spec, iter(values))
