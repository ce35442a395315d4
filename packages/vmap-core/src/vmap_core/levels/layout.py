"""How the samples of a batched tensor lie in memory.

Note [The layout invariant]: what a program can learn of memory (strides, whether a view is possible, whether
``reshape`` shares memory, ``as_strided``) is what the loop's tensor would tell. So

1. where the batch dim is the first (``_bdim == 0``) it is the outermost in memory, too: each sample lies as the loop's;
2. where it is another and the tensor is marked `EXACT` (an input, a view), the strides of the other dims are the sample's;
3. any other tensor is a result that nothing else shares memory with; its samples may even be one. `lay_out` gives them
   the layout of the loop's, and memory each, before a view of it is made; `sample_layout` tells what it will be.

A rule need not care, unless all its arguments have batch dim 0 and what it returns with batch dim 0 lies in memory in another
order: it returns `settled(output, 0)`. ``VMAP_CHECK=1`` checks the first and the third after each operation.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from ..torch_compat.functorch import transforms_active
from ..torch_compat.mode_stack import DisableTorchFunction
from ..torch_compat.tensors import dual_level
from .level import Level
from .recording import current
from .tensor import EXACT, BatchedTensor, Exact, become, make_batched


def is_outermost(value: Any, bdim: int) -> bool:
    """Tell whether the samples of a physical tensor lie one after the other in memory, or are one."""
    if value.layout is not torch.strided or (not bdim and value.is_contiguous()):
        return True
    shape, strides = value.shape, value.stride()
    step = strides[bdim]
    if not step or shape[bdim] <= 1:
        return True
    return all(step >= s or n <= 1 for d, (n, s) in enumerate(zip(shape, strides, strict=True)) if d != bdim)


def samples_first(value: Any, bdim: int) -> Any:
    """Return a physical tensor as one with the batch dim first, also in memory.

    The dims of a sample keep their order in memory; those along which it is expanded stay expanded, unless it is
    differentiated: each of its elements has a gradient and a tangent of its own.
    """
    shape, steps = value.shape, value.stride()
    dims = [d for d in range(value.ndim) if d != bdim]
    differentiated = value.requires_grad or dual_level() >= 0 or transforms_active()
    expanded = [] if differentiated else [d for d in dims if not steps[d] and shape[d] > 1]
    for d in expanded:
        value = value.narrow(d, 0, 1)
    order = sorted(dims, key=lambda d: -steps[d])
    out = value.permute(bdim, *order)
    if not out.is_contiguous():
        out = out.clone(memory_format=torch.contiguous_format)
    out = out.permute(0, *(order.index(d) + 1 for d in dims))
    return out.expand(-1, *(shape[d] for d in dims)) if expanded else out


def mapped(value: Any, bdim: int | None, level: Level) -> BatchedTensor:
    """Wrap a physical tensor that is not new: its memory is somebody else's, who is to see what is written to it."""
    value, bdim = settled(value, bdim)
    return make_batched(value, bdim, level, EXACT if bdim else None)


def sample_layout(value: Any, bdim: int | None, exact: bool) -> tuple[tuple[int, ...], int]:
    """Return strides and storage offset of a sample's tensor: what is there, or will be when it is laid out.

    Args:
        value: the physical tensor.
        bdim: its batch dim.
        exact: what is there is right (see Note [The layout invariant]).
    """
    strides = value.stride()
    if bdim is None:
        return strides, value.storage_offset()
    if exact or is_outermost(value, bdim):
        return (*strides[:bdim], *strides[bdim + 1 :]), value.storage_offset()
    found, step = [0] * len(strides), 1
    for d in sorted(range(len(strides)), key=lambda d: (strides[d], -d)):
        if d != bdim and (strides[d] or value.shape[d] == 1):
            found[d] = step
            step *= max(value.shape[d], 1)
    return (*found[:bdim], *found[bdim + 1 :]), 0


def lay_out(x: BatchedTensor) -> None:
    """Give the samples of a result the layout of the loop's, in place: it is the same tensor, also for autograd.

    It runs below the tensor's level, and leaves alone what has it.
    """
    value, bdim = x._value, x._bdim
    if not bdim or x._origin is not None:
        return
    if is_outermost(value, bdim) and (value.stride(bdim) or value.shape[bdim] <= 1):
        x._origin = EXACT
        return
    # gradients may be asked for it, so it has to stay the tensor that it is
    stays = value.requires_grad and current() is None and not transforms_active() and dual_level() < 0
    if stays and _exchange_memory(value, samples_first(value.detach(), bdim).movedim(0, bdim)):
        x._origin = EXACT
    else:
        become(x, samples_first(value, bdim), 0)


def _exchange_memory(value: Any, new: Any) -> bool:
    """Give a tensor other memory, and its base the same: autograd finds by strides what of the base is written to.

    Returns:
        False where its base would not be a strided tensor there; nothing is done.
    """
    (value, dims), (new, new_dims) = below_levels(value), below_levels(new)
    if dims.keys() != new_dims.keys():
        return False
    with DisableTorchFunction():
        own = iter([d for d in range(new.ndim) if d not in new_dims.values()])
        level_at = {d: level for level, d in dims.items()}
        new = new.permute([new_dims[level_at[d]] if d in level_at else next(own) for d in range(value.ndim)])
        if (base := value._base) is not None:
            strides = _strides_of_base(base, value, new)
            if strides is None:
                return False
            base.data = new.as_strided(base.shape, strides)
        value.data = new
    return True


def _strides_of_base(base: Any, value: Any, new: Tensor) -> list[int] | None:
    """Return how a base lies in the new memory of a view of all of it; None if it cannot.

    Dims of the base may be parts of one of the view's, or be made of several.
    """
    if base.numel() != value.numel():
        return None
    dims = [(s, n, t) for n, s, t in zip(value.shape, value.stride(), new.stride(), strict=True) if n > 1]

    def moved(step: int) -> int | None:
        """Return how far apart elements are now that were a step apart."""
        return next((t * (step // s) for s, n, t in dims if s <= step < s * n and step % s == 0), None)

    strides = []
    for n, s in zip(base.shape, base.stride(), strict=True):
        first = moved(s) if n > 1 else new.numel()
        if first is None:
            return None
        if n > 1 and any(moved(step) != first * (step / s) for step, _, _ in dims if s < step < s * n):
            return None
        strides.append(first)
    return strides


def settled(out: Any, bdim: Any) -> tuple[Any, Any]:
    """Return a rule's output and batch dim; one that is first, and is not so in memory, becomes the second."""
    if bdim != 0 or out.ndim == 1 or is_outermost(out, 0):
        return out, bdim
    return out.movedim(0, 1), 1


def contiguous_strides(shape: torch.Size, strides: tuple[int, ...], fmt: torch.memory_format) -> bool:
    """Tell whether strides are those of a contiguous tensor in the given memory format."""
    order = {
        torch.channels_last: (0, 2, 3, 1),
        torch.channels_last_3d: (0, 2, 3, 4, 1),
    }.get(fmt, tuple(range(len(shape))))
    if len(order) != len(shape):
        return False
    expected = 1
    for d in reversed(order):
        if shape[d] != 1 and strides[d] != expected and shape.numel():
            return False
        expected *= shape[d]
    return True


def seen(out: Any, bdim: int, value: Any) -> tuple[Any, int, Exact | None]:
    """Return what may be a view of a physical tensor with its batch dim, as `settled`, and its origin."""
    out, bdim = settled(out, bdim)
    return out, bdim, EXACT if bdim and same_storage(out, value) else None


def same_storage(a: Any, b: Any) -> bool:
    """Tell whether two values share memory, looking through levels."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    storage = storage_of(a)
    return a is b if storage is None else storage == storage_of(b)


def below_levels(x: Any, levels: Container[Level] | None = None) -> tuple[Any, dict[Level, int]]:
    """Return what a tensor is below levels (all, unless some are given), and the dim there of each that it has a batch dim of."""
    dims: dict[Level, int] = {}
    while type(x) is BatchedTensor and (levels is None or x._level in levels):
        bdim = x._bdim
        if bdim is not None:
            dims = {level: d + (bdim <= d) for level, d in dims.items()}
            dims[x._level] = bdim
        x = x._value
    return x, dims


def storage_of(x: Any) -> int | None:
    """Return what tells the memory of a tensor from all others while it lives, looking through levels; None if it has none."""
    while type(x) is BatchedTensor:
        x = x._value
    try:
        with DisableTorchFunction():
            address: int = x.untyped_storage()._cdata
            return address
    except (RuntimeError, NotImplementedError):  # sparse, meta wrappers
        return None
