"""Tensors made inside a mapped function: who owns them, what a write of batched data does to them.

``out = torch.zeros(n); out[i] = x`` works in a Python loop, since every iteration makes its own ``out``. Under vmap
``out`` starts as one unbatched tensor that the level owns, and is promoted (expanded and copied, once) when batched
data is first written to it or to a view of it. A tensor from outside the function is shared by all samples: such a
write to it is an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InplaceError, user_location
from ..torch_compat.functorch import enable_inplace_requires_grad, transforms_active
from ..torch_compat.mode_stack import stack_size
from ..torch_compat.tensors import dual_level
from .entry import dispatch
from .graph_node import physical_with_dims
from .layout import lay_out, samples_first
from .level import Level
from .sharing import refuse_seen
from .tensor import BatchedTensor, become, make_batched


class Origin:
    """How an unbatched tensor came to be inside its level.

    Attributes:
        base: the owned tensor this one is a view of; None for one that owns its memory.
        replay: makes the view again, from the promoted base.
        views: views of an owner, in the order they were made (weak references).
    """

    __slots__ = ("base", "replay", "views")

    def __init__(self, base: BatchedTensor | None = None, replay: Callable[[], BatchedTensor] | None = None) -> None:
        self.base = base
        self.replay = replay
        self.views: list[weakref.ref[BatchedTensor]] = []


def fresh(level: Level, value: Any) -> BatchedTensor:
    """Wrap an unbatched tensor that the mapped function has just made."""
    return make_batched(value, None, level, Origin())


def shared(level: Level, value: Any) -> BatchedTensor:
    """Wrap an unbatched tensor whose memory comes from outside (``captured.detach()``)."""
    return make_batched(value, None, level)


def was_made_inside(x: Any) -> bool:
    """Tell whether an unbatched tensor of a level was made inside the mapped function, so that it may be promoted."""
    return type(x._origin) is Origin


def view(level: Level, value: Any, of: BatchedTensor, replay: Callable[[], BatchedTensor]) -> BatchedTensor:
    """Wrap a view of an unbatched tensor; if the level owns that one, the view follows its promotion."""
    if type(of._origin) is not Origin:
        return shared(level, value)
    base = of if of._origin.base is None else of._origin.base
    result = make_batched(value, None, level, Origin(base, replay))
    assert type(base._origin) is Origin
    base._origin.views.append(weakref.ref(result))
    return result


def promote(level: Level, x: Any, op: object) -> None:
    """Give a tensor a batch dim in place, before batched data is written to it.

    Args:
        level: the running level, off the stack.
        x: the tensor to be written to.
        op: the operation, for the error.

    Raises:
        InplaceError: the tensor comes from outside the mapped function, or samples see each other through it.
    """
    if type(x) is BatchedTensor and x._level is level:
        if x._bdim is not None:
            if level.seen is None or level.seen:
                refuse_seen(level, x, op)
            value = x._value
            if not value.requires_grad:
                return
            leaf = value.is_leaf  # asked first: then PyTorch finds the node of a view whose base has been written to
            if level.batch_size == 1 or value.stride(x._bdim):
                return
            if not leaf:
                lay_out(x)
                return  # else it is a leaf for every sample, of memory from outside (see `requires_grad_`)
        elif type(x._origin) is Origin:
            base = x if x._origin.base is None else x._origin.base
            origin = base._origin
            assert type(origin) is Origin
            n, value = level.batch_size, base._value
            become(base, value.clone().unsqueeze(0) if n == 1 else samples_first(expanded(value, n), 0), 0)
            for ref in origin.views:
                old = ref()
                if old is not None and type(old._origin) is Origin:
                    assert old._origin.replay is not None
                    new = old._origin.replay()
                    become(old, new._value, new._bdim, new._origin)
            return
    raise InplaceError(
        f"vmap: {op}(self, *extra_args) is not possible because there exists a Tensor `other` in extra_args that has "
        f"more elements than `self`. This happened due to `other` being vmapped over but `self` not being vmapped "
        f"over at level {level.depth + 1}. Please try to use out-of-place operators instead of {op}. If said operator is being called "
        f"inside the PyTorch framework, please file a bug report instead.\n  At {user_location()}, in vmap of "
        f"{level.name!r}: `self` comes from outside the mapped function, so all samples share it. Instead: write to a "
        f"tensor made inside the function (self.clone()), or map over it with in_dims."
    )


def expanded(value: Any, batch_size: int) -> Any:
    """Return an unbatched value as ``batch_size`` equal samples in front, without a copy."""
    return value.expand(batch_size, *value.shape)


def requires_grad_(level: Level, x: Any, requires_grad: bool = True) -> Any:
    """``x.requires_grad_()`` inside a mapped function: per-sample gradients need one leaf per sample.

    An unbatched tensor becomes a batched leaf, so that autograd keeps the samples' gradients apart: one that was made
    inside and may be written to is promoted, a detached one from outside is expanded without a copy.
    """
    if type(x) is not BatchedTensor or x._level is not level:
        return x.requires_grad_(requires_grad)
    value = x._value
    if value.requires_grad == requires_grad:
        return x
    if not requires_grad:
        value.requires_grad_(False)
        return x
    own_memory_at(level, x)
    own = own_samples_at(level, x)  # a view: the caller's physical tensor must not start to require grad
    # Detached, for its own views are made again of its base, which has no graph, once that is written to; but a tangent stays.
    become(x, own._value if dual_level() >= 0 else own._value.detach(), own._bdim, own._origin)
    make_leaf(x)
    return x


def own_memory(x: Any) -> None:
    """Promote a tensor at every level that it was made in."""
    if type(x) is BatchedTensor:
        dispatch(own_memory, (x,))


def own_memory_at(level: Level, x: Any) -> None:
    """Do it at a level that is off the stack, and at those outside it."""
    if type(x) is BatchedTensor and x._level is level:
        if x._bdim is None and type(x._origin) is Origin:
            promote(level, x, own_memory)
        own_memory(x._value)
    else:
        own_memory(x)


def own_samples(x: Any, among: frozenset[Level] | None = None) -> Any:
    """Return a view of a tensor that has a batch dim at every active level, so that every sample has its own.

    Where the samples share the tensor, it is expanded without a copy. Autograd then keeps apart what the samples do
    to it: the gradient with respect to the view is per sample, and leads on to the tensor it views.

    Args:
        x: the tensor.
        among: the levels at which it is to have one; at others it stays as it is. None for all.
    """
    if stack_size():
        return dispatch(own_samples, (x,) if among is None else (x, among))
    return x.view_as(x) if x.layout in (torch.strided, torch.jagged) else x.clone()  # a sparse tensor has no views


def own_samples_at(level: Level, x: Any, among: frozenset[Level] | None = None) -> BatchedTensor:
    """Do it at a level that is off the stack, and at those outside it."""
    if type(x) is not BatchedTensor or x._level is not level or x._bdim is None:
        value = own_samples(x._value if type(x) is BatchedTensor and x._level is level else x, among)
        if among is None or level in among:
            return make_batched(expanded(value, level.batch_size), 0, level)
        return shared(level, value)
    lay_out(x)
    return make_batched(own_samples(x._value, among), x._bdim, level, x._origin)


def make_leaf(x: Any) -> None:
    """Let a tensor that `own_samples` has given require grad: the physical tensor becomes a leaf."""
    x, dims = physical_with_dims(x)
    if transforms_active():
        with enable_inplace_requires_grad(True):
            x.requires_grad_()
    else:
        x.requires_grad_()
    if dims:
        x._vmap_dims = dims


def leaf_level(leaf: Tensor) -> Level | None:
    """Return the level whose function made a physical leaf; None for a leaf from outside every level."""
    dims = getattr(leaf, "_vmap_dims", ())
    return dims[-1][0] if dims else None
