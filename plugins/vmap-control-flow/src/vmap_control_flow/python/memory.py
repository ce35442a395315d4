"""The tensors of a group of samples, when it parts and when it meets others: what shares memory goes on sharing it.

A class is what lies in one storage. A tensor alone in its class, with contiguous samples, is narrowed by ``index_select`` and
joined by ``cat``. Else the whole memory of a sample is (`_block`), and the tensors are made again as views of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vmap_core.extend import (
    BatchedTensor,
    Level,
    Piece,
    fresh,
    is_refused,
    make_batched,
    narrow,
    pieces_of,
    refuse_writes,
    remember,
    sample_layout,
    shared,
    storage_of,
    was_made_inside,
)


def classes(tensors: Sequence[Any]) -> list[list[Any]]:
    """Return tensors by the storage that they lie in."""
    found: dict[Any, list[Any]] = {}
    for x in tensors:
        key = storage_of(x)
        found.setdefault(id(x) if key is None else (key,), []).append(x)
    return list(found.values())


def narrowed(tensors: Sequence[Any], level: Level, new: Level, rows: Any) -> list[Any]:
    """Return the tensors of a class for some of the samples of their level, as those of another one.

    Args:
        tensors: of one level.
        level: that level.
        new: that of the samples.
        rows: which they are.
    """
    out = _narrowed(tensors, new, rows)
    if is_refused(level, tensors[0]):
        refuse_writes(new, out)
    return out


def _narrowed(tensors: Sequence[Any], level: Level, rows: Any) -> list[Any]:
    if len(tensors) == 1 and (one := _narrowed_alone(tensors[0], level, rows)) is not None:
        return [one]
    found = _block(tensors)
    if found is None:
        out = [_selected(x, level, rows) for x in tensors]
        if len(tensors) > 1:
            refuse_writes(level, out)
        return out
    matrix, start = found
    if tensors[0]._bdim is None:
        if not any(map(was_made_inside, tensors)):
            return [shared(level, x._value) for x in tensors]
        memory = matrix.expand(len(rows), -1).clone(memory_format=torch.contiguous_format)
    else:
        memory = matrix.index_select(0, rows.to(matrix.device))
    return [
        _remembered(new, [x], [rows]) for new, x in zip(_views(tensors, memory, start, level), tensors, strict=True)
    ]


def joined(parts: Sequence[Sequence[Any]], levels: Sequence[Level], level: Level, loose: bool = False) -> list[Any]:
    """Return the tensors of one class of several groups as those of all their samples, one group after the other.

    Args:
        parts: for each group its tensors, which lie alike in all (see `layout_of`).
        levels: of each group.
        level: that of all samples.
        loose: whether they need not lie alike.
    """
    first = parts[0]
    if all(x is first[i] for part in parts for i, x in enumerate(part)):
        return list(first)
    refused = any(
        is_refused(own, x) or _outside_value(x, own) is not None
        for part, own in zip(parts, levels, strict=True)
        for x in part
    )
    parts = [[narrow(own, x) for x in part] for part, own in zip(parts, levels, strict=True)]
    out = [_catted([x for (x,) in parts], levels, level)] if loose else _joined(parts, levels, level)
    if refused or loose:  # the loop would write to tensors from outside
        refuse_writes(level, out)
    return out


def _joined(parts: Sequence[Sequence[Any]], levels: Sequence[Level], level: Level) -> list[Any]:
    first = parts[0]
    if len(first) == 1:
        values = [_outside_value(x, own) for (x,), own in zip(parts, levels, strict=True)]
        if values[0] is not None and all(v is values[0] for v in values):
            return [shared(level, values[0])]
        if all(_is_simple(x, own) for (x,), own in zip(parts, levels, strict=True)):
            return [_catted([x for (x,) in parts], levels, level)]
    blocks = [b for b in map(_block, parts) if b is not None]
    if len(blocks) < len(parts):
        out = [_catted(column, levels, level) for column in zip(*parts, strict=True)]
        refuse_writes(level, out)
        return out
    pieces = [
        m.expand(own.batch_size, -1) if m.shape[0] == 1 else m for (m, _), own in zip(blocks, levels, strict=True)
    ]
    out = _views(first, torch.cat(pieces), blocks[0][1], level)
    return [_remembered(new, column, levels) for new, column in zip(out, zip(*parts, strict=True), strict=True)]


def layout_of(x: Any) -> Any:
    """Return what two tensors have alike, by which those of two groups can be one."""
    if type(x) is not BatchedTensor:
        strides, offset = (x.stride(), x.storage_offset()) if x.layout is torch.strided else (x.layout, 0)
        return tuple(x.shape), x.dtype, x.device, strides, offset, x.requires_grad
    value = x._value
    if value.layout is not torch.strided:
        return tuple(x.shape), x.dtype, x.device, value.layout, 0, value.requires_grad
    strides, offset = sample_layout(value, x._bdim, x._origin is not None)
    shape = tuple(n for d, n in enumerate(value.shape) if d != x._bdim)
    steps = tuple(s if n != 1 else 0 for n, s in zip(shape, strides, strict=True))
    return shape, value.dtype, value.device, steps, offset, value.requires_grad


def _is_simple(x: Any, level: Level) -> bool:
    """Tell whether nothing but its elements is to be known of where a tensor lies."""
    if type(x) is not BatchedTensor or x._level is not level:
        return x.layout is not torch.strided or (x.is_contiguous() and not x.storage_offset())
    value, bdim = x._value, x._bdim
    if value.layout is not torch.strided:
        return True
    if bdim is None:
        return value.is_contiguous() and not value.storage_offset()
    return (bdim == 0 and value.is_contiguous() and not value.storage_offset()) or (bdim != 0 and x._origin is None)


def _narrowed_alone(x: Any, level: Level, rows: Any) -> Any:
    value, bdim = x._value, x._bdim
    if bdim is None:
        return fresh(level, value.clone()) if was_made_inside(x) else shared(level, value)
    if not _is_simple(x, x._level):
        return None
    if bdim:
        return _selected(x, level, rows)
    return _remembered(make_batched(value.index_select(bdim, rows.to(value.device)), bdim, level), [x], [rows])


def _selected(x: Any, level: Level, rows: Any) -> Any:
    """Return some samples of a tensor, each with its dims in the order of memory that they have."""
    value, bdim = x._value, x._bdim
    if bdim is None:
        return _narrowed_alone(x, level, rows)
    order = sorted((d for d in range(value.ndim) if d != bdim), key=lambda d: -value.stride(d))
    picked = value.permute(bdim, *order).index_select(0, rows.to(value.device))
    back = [order.index(d) + 1 for d in range(value.ndim) if d != bdim]
    return _remembered(make_batched(picked.permute(0, *back), 0, level), [x], [rows])


def _catted(column: Sequence[Any], levels: Sequence[Level], level: Level) -> Any:
    values = []
    for x, own in zip(column, levels, strict=True):
        of_group = type(x) is BatchedTensor and x._level is own
        value, bdim = (x._value, x._bdim) if of_group else (x, None)
        values.append(value.expand(own.batch_size, *value.shape) if bdim is None else value.movedim(bdim, 0))
    return _remembered(make_batched(torch.cat(values), 0, level), column, levels)


def _outside_value(x: Any, level: Level) -> Any:
    """Return the tensor behind one that comes from outside the group; None for one that was made inside."""
    if type(x) is not BatchedTensor or x._level is not level:
        return x
    return x._value if x._bdim is None and not was_made_inside(x) else None


def _block(tensors: Sequence[Any]) -> tuple[Any, int] | None:
    """Return the memory of tensors as a matrix, a row for each sample, and where in it the first begins; None if it is none."""
    values = [x._value if type(x) is BatchedTensor else x for x in tensors]
    dims = [x._bdim if type(x) is BatchedTensor else None for x in tensors]
    if any(v.layout is not torch.strided for v in values) or len({v.dtype for v in values}) > 1:
        return None
    if len({d is None for d in dims}) > 1:
        return None
    start = min(v.storage_offset() for v in values)
    size = max(v.storage_offset() - start + _extent(v, d) for v, d in zip(values, dims, strict=True))
    n, step = 1, size
    if dims[0] is not None:
        n = values[0].shape[dims[0]]
        steps = {v.stride(d) for v, d in zip(values, dims, strict=True)}
        if n > 1:
            step = steps.pop()
            if steps or step < size:
                return None
    anchor: Any = max(values, key=lambda v: v.numel())
    if any(v.requires_grad for v in values):
        if any(
            not v.requires_grad or (v.is_leaf and v._is_view()) for v in values
        ):  # a view made without recording is no part of the graph
            return None
        if anchor.numel() < n * size and len(values) > 1:
            anchor = anchor if anchor._base is None else anchor._base
            if anchor.numel() < n * size or not anchor.is_contiguous():
                return None
    return anchor.as_strided((n, size), (step, 1), start), start


def _extent(value: Any, bdim: int | None) -> int:
    """Return how much memory a sample takes, from its first element to its last."""
    pairs = [(n, s) for d, (n, s) in enumerate(zip(value.shape, value.stride(), strict=True)) if d != bdim]
    return 0 if any(not n for n, _ in pairs) else 1 + sum((n - 1) * s for n, s in pairs)


def _views(tensors: Sequence[Any], memory: Any, start: int, level: Level) -> list[Any]:
    """Return tensors like others, as views of the memory of other samples, a row each."""
    n, size = memory.shape
    flat = memory.flatten()
    if start:
        flat = torch.cat([flat.new_zeros(start), flat])
    out = []
    for x in tensors:
        value, bdim = (x._value, x._bdim) if type(x) is BatchedTensor else (x, None)
        sizes = [m for d, m in enumerate(value.shape) if d != bdim]
        steps = [s for d, s in enumerate(value.stride()) if d != bdim]
        new = flat.as_strided([n, *sizes], [size, *steps], value.storage_offset())
        out.append(make_batched(new, 0, level))
    return out


def _remembered(new: Any, of: Sequence[Any], rows: Sequence[Any]) -> Any:
    """Keep at a tensor what its gradient is to be asked of: what its samples were before they parted or met.

    For what was computed before, depends on those and not on this one; what is computed from now on depends on both.

    Args:
        new: the tensor.
        of: the tensor it was narrowed from, or those that it was joined from.
        rows: which samples of that one; or the levels of these.
    """
    if not new._value.requires_grad:
        return new
    if len(of) == 1:
        x = of[0]
        if x._bdim is not None:
            remember(new._value, x._value, (x._bdim,), rows)
        return new
    pieces: list[Piece] = []
    start = 0
    for x, level in zip(of, rows, strict=True):
        of_group = type(x) is BatchedTensor and x._level is level
        value, bdim = (x._value, x._bdim) if of_group else (x, None)
        own = pieces_of(value, () if bdim is None else (bdim,), level.batch_size)
        pieces += [Piece(p.tensor, p.dims, p.samples, p.places + start) for p in own]
        start += level.batch_size
    new._value._vmap_pieces = pieces
    return new
