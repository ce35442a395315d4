"""vmap."""
import functools

import torch
from ._level import Level, push_level, pop_level
from ._packs import current_table
from ._tensor import BatchedTensor
from torch.utils._pytree import tree_flatten, tree_unflatten, _broadcast_to_and_flatten


def vmap(func, in_dims=0, out_dims=0, randomness="error", *, chunk_size=None):
    @functools.wraps(func)
    def wrapped(*args, **kwargs):
        flat, spec = tree_flatten(args)
        dims = _broadcast_to_and_flatten(in_dims, spec)
        dims = [None if d is None else d % a.ndim for a, d in zip(flat, dims)]
        B = next(a.shape[d] for a, d in zip(flat, dims) if d is not None)
        level = Level(B, randomness, current_table(), getattr(func, "__name__", repr(func)))
        flat = [a if d is None else BatchedTensor(a, d, level) for a, d in zip(flat, dims)]
        with level:
            out = func(*tree_unflatten(flat, spec), **kwargs)
        flat, spec = tree_flatten(out)
        od = _broadcast_to_and_flatten(out_dims, spec)
        res = []
        for o, d in zip(flat, od):
            if type(o) is BatchedTensor and o._level is level:
                v, b = o._value, o._bdim
            else:
                v, b = o, None
            if d is None:
                assert b is None
                res.append(v)
                continue
            if b is None:
                v = v.expand(B, *v.shape); b = 0
            res.append(v.movedim(b, d))
        return tree_unflatten(res, spec)
    return wrapped
