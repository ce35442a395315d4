"""``x[...]`` and ``x[...] = y``: an index expression is taken apart into views and one advanced index.

`parse` turns any expression that PyTorch accepts into basic steps (select, slice, new dims) and, per dim of the view
they give, an index tensor or None. The steps are views, so reading them costs nothing and writing goes through.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..dispatch.gathered import gathered, gathered_at
from ..errors import DataDependentError
from ..levels.args import any_batched
from ..levels.ownership import promote
from ..levels.tensor import BatchedTensor, make_batched
from ..rulekit.rule import Rule, RulePack
from ..torch_compat.operators import named_aten as aten
from .cast import as_number
from .dynamic import mask_error

pack = RulePack("core.getitem")

pack.logical(gathered)(gathered_at)


def as_tuple(index: Any) -> tuple[Any, ...]:
    """Return an index expression as a tuple of its parts; a list of slices or tensors counts as a tuple."""
    if isinstance(index, tuple):
        return index
    if isinstance(index, list) and any(
        isinstance(i, slice | Tensor | list | tuple) or i is None or i is ... for i in index
    ):
        # NumPy's old rule, which PyTorch keeps for short sequences that hold something other than numbers
        return tuple(index) if len(index) < 32 else (index,)
    return (index,)


def parse(x: Any, index: Any) -> tuple[Any, list[Any]]:
    """Apply the basic parts of an index expression.

    Args:
        x: the tensor, as the mapped function sees it, at a level that is on the stack.
        index: what stands between the brackets.

    Returns:
        The view after selects, slices and new dims; for each of its dims an index tensor, or None. Trailing
        Nones are left out, so the list is empty where the index was basic.
    """
    parts = as_tuple(index)
    used = sum(_dims_used(p) for p in parts)
    ellipses = sum(p is ... for p in parts)
    if ellipses > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if used > x.dim():
        raise IndexError(f"too many indices for tensor of dimension {x.dim()}")
    missing = x.dim() - used
    view, dim = x, 0
    mixed = mixes_scalars(parts)
    advanced: list[Any] = []
    for part in parts:
        if part is ...:
            dim += missing
        elif part is None:
            view = view.unsqueeze(dim)
            dim += 1
        elif isinstance(part, bool):
            view = view.unsqueeze(dim)
            _put(advanced, dim, torch.tensor([0] if part else [], dtype=torch.long, device=x.device))
            dim += 1
        elif isinstance(part, slice):
            view = _slice(view, dim, part)
            dim += 1
        elif isinstance(part, Tensor):
            if not part.dim() and part.dtype not in (torch.bool, torch.uint8) and _is_shared(part):
                view = view.select(dim, int(part))
                continue
            if not part.dim() and mixed and part.dtype not in (torch.bool, torch.uint8):
                view = aten.index.Tensor(view, [None] * dim + [part])  # selects, so it has no place among the others
                continue
            if part.dtype in (torch.bool, torch.uint8):
                if not part.dim():
                    view = view.unsqueeze(dim)
                    part = part.unsqueeze(0)
                for k, axis in enumerate(mask_to_indices(part)):
                    _check_mask(part, k, view, dim)
                    _put(advanced, dim, axis)
                    dim += 1
                continue
            _put(advanced, dim, part)
            dim += 1
        elif isinstance(part, Sequence) or hasattr(part, "__array__"):
            tensor = torch.as_tensor(part, device=x.device)
            if not tensor.numel() and tensor.dtype.is_floating_point:
                tensor = tensor.long()
            if tensor.dtype == torch.bool:
                for axis in mask_to_indices(tensor):
                    _put(advanced, dim, axis)
                    dim += 1
                continue
            _put(advanced, dim, tensor)
            dim += 1
        else:
            try:
                number = operator.index(part)
            except TypeError:
                raise IndexError(
                    "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid indices "
                    f"(got {type(part).__name__})"
                ) from None
            size = view.shape[dim]
            if not -size <= number < size:
                raise IndexError(f"index {number} is out of bounds for dimension {dim} with size {size}")
            view = view.select(dim, number)
    return view, advanced


def mixes_scalars(parts: tuple[Any, ...]) -> bool:
    """Tell whether a batched 0-d index stands beside index tensors with dims.

    PyTorch takes a 0-d integer tensor for a number: it selects, and does not count when the index tensors are looked
    at for being adjacent.
    """
    tensors = [p for p in parts if isinstance(p, Tensor) and p.dtype not in (torch.bool, torch.uint8)]
    scalars = [p for p in tensors if not p.dim() and not _is_shared(p)]
    return bool(scalars) and (
        len(tensors) > len(scalars) or any(isinstance(p, list | range) or _is_mask(p) for p in parts)
    )


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8)


def _dims_used(part: Any) -> int:
    if part is None or part is ... or isinstance(part, bool):
        return 0
    if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8):
        return part.dim()
    if isinstance(part, list) or (hasattr(part, "__array__") and not isinstance(part, Tensor)):
        tensor = torch.as_tensor(part)
        return tensor.dim() if tensor.dtype == torch.bool else 1
    return 1


def _is_shared(part: Any) -> bool:
    """Tell whether an index tensor is the same for the samples of every level."""
    return type(part) is not BatchedTensor or (part._bdim is None and _is_shared(part._value))


def _put(advanced: list[Any], dim: int, index: Any) -> None:
    advanced.extend([None] * (dim - len(advanced)))
    advanced.append(index)


def _slice(view: Any, dim: int, part: slice) -> Any:
    if part == slice(None):
        return view
    step = 1 if part.step is None else operator.index(part.step)
    if step < 1:
        raise ValueError("step must be greater than zero")
    start, stop = (None if s is None else operator.index(s) for s in (part.start, part.stop))
    return aten.slice.Tensor(view, dim, start, stop, step)


def _check_mask(mask: Any, k: int, view: Any, dim: int) -> None:
    if mask.shape[k] != view.shape[dim]:
        raise IndexError(
            f"The shape of the mask {list(mask.shape)} at index {k} does not match the shape of the indexed tensor "
            f"{list(view.shape)} at index {dim}"
        )


def mask_to_indices(mask: Any) -> Sequence[Any]:
    """Return where a mask is true, as one index tensor a dim; all samples must have as many places."""
    try:
        return torch.where(mask)
    except DataDependentError as error:
        raise mask_error(mask.shape, str(error).partition("sample to sample (")[2].partition(")")[0]) from None


_BASIC = {int, slice, type(None), type(...)}
_ALL = slice(None)


def getitem(info: Any, x: Any, index: Any) -> Any:
    """``x[index]``: a view for a basic index, one gathering operation for an advanced one."""
    kind = type(index)
    if kind in _BASIC or (kind is tuple and _BASIC.issuperset(map(type, index))):
        if type(x) is not BatchedTensor or x._level is not info:
            return x[index]  # a view of a tensor from outside
        if x._bdim == 0:
            try:
                if kind is int:
                    return make_batched(torch.select(x._value, 1, index), 0, info)
                return make_batched(x._value[(_ALL, *index) if kind is tuple else (_ALL, index)], 0, info)
            except IndexError:
                pass  # said again below, in logical dims
    with info.pushed():
        view, advanced = parse(x, index)
        if advanced:
            if all(i is None or not i.dim() for i in advanced) and not any(map(_is_mask, as_tuple(index))):
                return gathered(view, advanced)  # numbers: a view in the loop
            return aten.index.Tensor(view, advanced)
        return view if view is not x else aten.alias.default(x)


# The commonest views, in fewer steps.
_IN_FRONT: dict[tuple[type, ...], str] = {(slice,): "value[everything, a1]", (int,): "select(value, 1, a1)"}
pack.add(torch.Tensor.__getitem__, Rule(getitem, "logical", in_front=_IN_FRONT))


@pack.logical(torch.Tensor.__setitem__)
def setitem(info: Any, x: Any, index: Any, value: Any) -> None:
    """``x[index] = value``; a tensor made inside the function is promoted if batched data is written to it."""
    parts = as_tuple(index)
    if any_batched(info, (x, value, *parts), {}):
        promote(info, x, "aten::copy_" if isinstance(value, Tensor) else "aten::fill_")
    with info.pushed():
        mask = _batched_mask(parts)
        if mask is not None and _write_mask(x, parts, mask, value):
            return
        if mixes_scalars(parts):
            _write_places(x, index, value)
            return
        view, advanced = parse(x, index)
        if not isinstance(value, Tensor):
            value = torch.scalar_tensor(value, dtype=x.dtype, device=x.device) if advanced else value
        if advanced:
            if value.numel() == 1 and any(map(_is_mask, parts)):  # a fill
                value = as_number(value, x.dtype)
            elif all(i is None or not i.dim() for i in advanced):  # a copy
                value = value.to(x.dtype)
            while value.dim() and value.shape[0] == 1:
                value = value.squeeze(0)
            aten.index_put_.default(view, advanced, value)
        elif isinstance(value, Tensor):
            while value.dim() > view.dim() and value.shape[0] == 1:
                value = value.squeeze(0)
            view.copy_(value)
        else:
            view.fill_(value)


def _write_places(x: Any, index: Any, value: Any) -> None:
    """Write where the index expression, applied to the places themselves, says."""
    places = torch.arange(x.numel(), device=x.device).reshape(x.shape)[index]
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(places.shape)
    x.copy_(x.reshape(-1).scatter(0, places.reshape(-1), value.reshape(-1)).reshape(x.shape))


def _batched_mask(parts: tuple[Any, ...]) -> Any:
    """Return the boolean mask of an index expression if its samples differ and nothing else is an index tensor."""
    masks = [p for p in parts if type(p) is BatchedTensor and not _is_shared(p) and p.dtype == torch.bool]
    if len(masks) != 1 or not all(p is masks[0] or type(p) in _BASIC or _selects(p) for p in parts):
        return None
    return masks[0]


def _selects(part: Any) -> bool:
    """Tell whether an index tensor is taken for a number."""
    return isinstance(part, Tensor) and not part.dim() and not _is_mask(part) and _is_shared(part)


def _write_mask(x: Any, parts: tuple[Any, ...], mask: Any, value: Any) -> bool:
    """Write ``x[.., mask, ..] = value`` where the mask differs from sample to sample; False where the value goes by its hits.

    What the other parts select is a view; of that, the elements under the mask are replaced.
    """
    at = next(i for i, p in enumerate(parts) if p is mask)
    around = [slice(None)] * mask.dim()
    view, _ = parse(x, (*parts[:at], *around, *parts[at + 1 :]))
    used = sum(map(_dims_used, parts))
    first = sum(p is None or type(p) is slice for p in parts[:at])  # the dim of the view where the mask begins
    if any(p is ... for p in parts[:at]):
        first += x.dim() - used
    for k in range(mask.dim()):
        _check_mask(mask, k, view, first + k)
    after = view.dim() - first - mask.dim()
    if not isinstance(value, Tensor):
        value = torch.scalar_tensor(value, dtype=x.dtype, device=x.device)
    elif value.numel() == 1:  # a fill
        value = as_number(value, x.dtype)
    elif value.dtype != x.dtype:  # refused in PyTorch's words
        torch.zeros(1, dtype=x.dtype).index_put((torch.tensor([0]),), torch.zeros(1, dtype=value.dtype))
    if value.dim():
        if value.dim() > after:
            hits = value.dim() - after - 1  # the dim of the value that goes along the true elements
            if value.shape[hits] != 1:
                return False
            value = value.reshape((*value.shape[:hits], *(1,) * mask.dim(), *value.shape[hits + 1 :]))
        while value.dim() > view.dim() and value.shape[0] == 1:
            value = value.squeeze(0)
    mask = mask.reshape((*mask.shape, *(1,) * after))
    view.copy_(torch.where(mask, value, view))
    return True
