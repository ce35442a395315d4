"""Inputs of a mapped function through which its samples see each other's memory.

``vmap(f, in_dims=(0, None))(x, x)``: in the loop, what a sample writes to its row is seen by the samples after it, which
read the table. One batched write cannot do that, so it is refused; reads are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ..errors import InplaceError, user_location
from .layout import below_levels, storage_of
from .level import Level
from .tensor import BatchedTensor


def refuse_seen(level: Level, x: Any, op: object) -> None:
    """Raise if samples would see what others write to a batched tensor.

    Args:
        level: the running level. What it finds out at the first write it keeps: ``level.seen``, most often nothing.
        x: the tensor, with a batch dim at this level.
        op: the operation, for the error.

    Raises:
        InplaceError: its memory is that of an input, and of another sample, or of all.
    """
    if is_refused(level, x):
        if level.rows:
            raise InplaceError(
                f"vmap: {op} at {user_location()}, in vmap of {level.name!r}, writes to a tensor of logical shape "
                f"{tuple(x.shape)} from outside a branch that not all samples take. Instead: write to a copy (self.clone()), and return "
                f"it from the branch."
            )
        raise InplaceError(
            f"vmap: {op} at {user_location()}, in vmap of {level.name!r}, writes to an input of logical shape "
            f"{tuple(x.shape)} whose memory other samples see: one tensor is mapped and shared in one call, or mapped over two "
            f"dims, or its samples overlap. In the loop, the samples after this one would see what it writes. Instead: "
            f"write to a copy made inside (self.clone()), or pass a copy (x.clone()) for one of the two."
        )


def is_refused(level: Level, x: Any) -> bool:
    """Tell whether a write to a tensor of a level is an error: samples would see what others write."""
    if level.seen is None:
        level.seen = _seen(level) if level.batch_size > 1 else set()
    return bool(level.seen) and storage_of(x) in level.seen


def refuse_writes(level: Level, tensors: Iterable[Any]) -> None:
    """Let writes to tensors of a level be an error."""
    for x in tensors:
        if not is_refused(level, x):
            assert level.seen is not None
            level.seen.add(storage_of(x))


def _seen(level: Level) -> set[int | None]:
    """Return the storages of mapped inputs in which an element belongs to two samples, or to one and to what all share."""
    by_storage: dict[int | None, list[Any]] = {}
    for a in level.inputs:
        if type(a) is BatchedTensor and a._level is level:
            by_storage.setdefault(storage_of(a), []).append(a)
    by_storage.pop(None, None)
    if by_storage:
        for a in _others(level):
            found = by_storage.get(storage_of(a))
            if found is not None:
                found.append(a)
    return {s for s, tensors in by_storage.items() if _samples_overlap(level, tensors)}


def _others(level: Level) -> Iterator[Any]:
    """Yield the tensors that all samples share: inputs, and what the mapped function has from around it."""
    for values in (level.inputs, values_around(level.func)):
        yield from (v for v in values if isinstance(v, Tensor) and not (type(v) is BatchedTensor and v._level is level))


def values_around(func: Any) -> list[Any]:
    """Return what a function knows beside its arguments: what a partial holds, and the variables and globals that it names."""
    values: list[Any] = []
    while isinstance(func, partial):
        values += [*func.args, *func.keywords.values()]
        func = func.func
    func = getattr(func, "__func__", func)
    if isinstance(func, FunctionType):
        around = func.__globals__
        values += [around.get(name) for name in func.__code__.co_names]
        for cell in func.__closure__ or ():
            with suppress(ValueError):  # it is empty yet
                values.append(cell.cell_contents)
    return values


def _samples_overlap(level: Level, tensors: list[Any]) -> bool:
    """Tell whether an element of one storage belongs to two samples, or to one and to what all share."""
    placed = [(value, dims.get(level)) for value, dims in map(below_levels, tensors)]
    if len(placed) == 1 or len({(t.dtype, t.shape, t.stride(), t.storage_offset(), dim) for t, dim in placed}) == 1:
        if not _may_overlap(placed[0][0]):
            return False
    unit = min(t.itemsize for t, _ in placed)
    size = placed[0][0].untyped_storage().nbytes() // unit
    nobody, everybody = -2, -1
    owner = torch.full((size,), nobody)
    for t, dim in placed:
        k = t.itemsize // unit  # elements of another dtype are seen as several
        shape, strides = (*t.shape, k), (*(s * k for s in t.stride()), 1)
        places = torch.arange(size).as_strided(shape, strides, t.storage_offset() * k)
        sample = torch.tensor(everybody)
        if dim is not None:
            sample = torch.arange(level.batch_size).reshape([-1 if d == dim else 1 for d in range(len(shape))])
        sample = sample.expand(shape)
        there = owner[places]
        if ((there != nobody) & (there != sample)).any():
            return True
        owner[places] = sample
        if (owner[places] != sample).any():
            return True
    return False


def _may_overlap(t: Tensor) -> bool:
    """Tell whether elements of a tensor may share memory; False is certain."""
    if t.is_contiguous():
        return False
    reach = 0
    for step, n in sorted(zip(t.stride(), t.shape, strict=True)):
        if n > 1 and step <= reach:
            return True
        reach += step * (n - 1)
    return False
