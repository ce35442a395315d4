"""Operators whose results have as many elements as the values say: mapped where all samples have one number of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import DataDependentError, user_location
from ..levels.read import every_sample
from ..levels.tensor import make_batched
from ..rulekit.dims import ensure_bdim, pad_rank, to_front
from ..rulekit.rule import RuleFunction, RulePack
from ..torch_compat.operators import named_aten as aten
from .reduction import flat

pack = RulePack("core.dynamic")


def _common_count(info: Any, hits: Any, error: Callable[[str], Exception]) -> int:
    """Return how many elements each sample has, given (batch size, elements).

    Raises:
        DataDependentError: made by ``error``, which is told in what they differ.
    """
    per_sample = hits.sum(1)
    counts = every_sample(per_sample)
    if not counts.numel():
        raise error("the batch is empty")
    low, high = int(counts.min()), int(counts.max())
    if low == high:
        return low
    problem = f"sizes from {low} to {high}"
    if info.part is not None:
        info.part(
            make_batched(per_sample, 0, info), per_sample, "a size that depends on values", lambda: error(problem)
        )
    raise error(problem)


def _count(info: Any, hits: Any, name: str, advice: str) -> int:
    return _common_count(
        info,
        hits,
        lambda problem: DataDependentError(
            f"vmap: We do not support batching operators that can output dynamic shape. "
            f"Attempted to vmap over aten::{name}. Please file an issue at https://github.com/pytorch/pytorch/issues if "
            f"you need this feature.\n  {name} at {user_location()}, in vmap of {info.name!r}: its results differ in size "
            f"from sample to sample ({problem}). Instead: {advice}."
        ),
    )


def mask_error(shape: Sequence[int], problem: str) -> DataDependentError:
    """Make the error for a read through a boolean mask whose samples differ in how many elements they select."""
    return DataDependentError(
        f"vmap: We do not support batching operators that can output dynamic shape. Attempted to vmap over aten::index "
        f"with a boolean mask, x[mask], at {user_location()}: the mask, of logical shape {tuple(shape)}, differs from "
        f"sample to sample in how many of its elements are true, so the results would differ in size ({problem}). "
        f"Instead: use torch.where(mask, x, other), which keeps the shape; x[mask] = y works."
    )


def places_of(info: Any, mask: Any, bdim: int) -> list[Any]:
    """Return where a boolean mask is true, as an index tensor (batch size, k) for each of the sample's dims.

    Raises:
        DataDependentError: samples differ in how many there are.
    """
    x = to_front(mask, bdim)
    k = _common_count(info, flat(x, 0) != 0, lambda problem: mask_error(x.shape[1:], problem))
    return list(nonzero_static(None, (0,), x, size=k)[0].unbind(2))


@pack.rule(aten.nonzero_static.default)
def nonzero_static(info, in_dims, x, *, size, fill_value=-1):
    """(*) -> (size, rank): where the sample is not zero, padded or cut to ``size``."""
    bdim, rank = in_dims[0], x.ndim - 1
    shape = to_front(x, bdim).shape[1:]
    hits = flat(x, bdim) != 0
    # rank of every hit among its sample's hits; what does not fit goes to a last row that is cut off
    order = torch.where(hits, hits.cumsum(1) - 1, size).clamp(max=size)
    place = torch.arange(hits.shape[1], device=x.device).expand(hits.shape)
    found = torch.full((hits.shape[0], size + 1), -1, dtype=torch.long, device=x.device)
    found = found.scatter(1, order, place)[:, :size]
    columns = []
    rest = found
    for n in reversed(shape):
        columns.append(rest % max(n, 1))
        rest = torch.div(rest, max(n, 1), rounding_mode="floor")
    out = torch.stack(columns[::-1], 2) if rank else found.new_empty(hits.shape[0], size, 0)
    return torch.where((found < 0)[:, :, None], fill_value, out), 0


_WHERE = "use torch.where(condition, a, b), or torch.nonzero_static with a size that covers every sample"


@pack.rule(aten.nonzero.default, aten.argwhere.default)
def nonzero(info, in_dims, x):
    """(*) -> (k, rank): where the sample is not zero."""
    k = _count(info, flat(x, in_dims[0]) != 0, "nonzero", _WHERE)
    return nonzero_static(info, in_dims, x, size=k)


@pack.rule(aten.nonzero_numpy.default, aten.where.default)
def where(info, in_dims, x):
    """(*) -> rank times (k): where the sample is not zero, one tensor a dim."""
    x = to_front(x, in_dims[0])
    places, _ = nonzero(info, (0,), x if x.ndim > 1 else x.unsqueeze(1))
    columns = places.unbind(2)
    return columns, (0,) * len(columns)


@pack.rule(aten.masked_select.default)
def masked_select(info, in_dims, x, mask):
    """(*), bool (*) -> (k): the elements where the mask is true."""
    if in_dims[1] is None:  # what is selected is the same for all samples, even for none
        x = to_front(x, in_dims[0])
        shape = torch.broadcast_shapes(x.shape[1:], mask.shape)
        return flat(pad_rank(x, 0, len(shape)).expand(x.shape[0], *shape), 0)[:, mask.expand(shape).flatten()], 0
    rank = max(t.ndim - (d is not None) for t, d in zip((x, mask), in_dims, strict=True))
    x, mask = (pad_rank(ensure_bdim(t, d, info.batch_size), 0, rank) for t, d in zip((x, mask), in_dims, strict=True))
    x, mask = (flat(t, 0) for t in torch.broadcast_tensors(x, mask))
    k = _count(info, mask, "masked_select", "use torch.where(mask, x, 0), which keeps the shape")
    places, _ = nonzero_static(info, (0,), mask, size=k)
    return x.gather(1, places[:, :, 0]), 0


def _unique(name: str, sorts: bool) -> RuleFunction:
    def unique(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        """(*) -> (k), (*) or (0), (k) or (0): the values, where each element's is among them, how often it occurs."""
        options = dict(zip(_OPTIONS[name], args, strict=False)) | kwargs
        x = to_front(x, in_dims[0])
        values, shape = flat(x, 0), x.shape[1:]
        if options.get("dim") is not None:
            return _refuse(info, name)
        order = None
        if sorts:
            values, order = values.sort(1)
        first = torch.ones_like(values, dtype=torch.bool)
        first[:, 1:] = values[:, 1:] != values[:, :-1]
        k = _count(info, first, name, _SORT)
        starts = nonzero_static(info, (0,), first, size=k)[0][:, :, 0]
        empty = starts.new_empty(info.batch_size, 0)
        inverse, counts = empty, empty
        if options.get("return_inverse"):
            inverse = first.cumsum(1) - 1
            inverse = inverse if order is None else inverse.scatter(1, order, inverse)
            inverse = inverse.reshape(info.batch_size, *shape)
        if options.get("return_counts"):
            ends = torch.cat([starts[:, 1:], starts.new_full((info.batch_size, min(k, 1)), values.shape[1])], 1)
            counts = ends - starts
        outs = (values.gather(1, starts), inverse, counts)[: 2 if name == "_unique" else 3]
        return outs, (0,) * len(outs)

    return unique


_SORT = "sort, and compare neighbours; or map outside"
_OPTIONS = {
    "_unique": ("sorted", "return_inverse"),
    "_unique2": ("sorted", "return_inverse", "return_counts"),
    "unique_consecutive": ("return_inverse", "return_counts", "dim"),
}


def _refuse(info: Any, name: str) -> Any:
    raise DataDependentError(
        f"vmap: We do not support batching operators that can output dynamic shape. Attempted to vmap over aten::{name} "
        f"along a dim, at {user_location()}, in vmap of {info.name!r}. Instead: {_SORT}."
    )


def _along_a_dim(name: str) -> RuleFunction:
    return lambda info, in_dims, x, *args, **kwargs: _refuse(info, name)


pack.add(aten._unique.default, _unique("_unique", True))
pack.add(aten._unique2.default, _unique("_unique2", True))
pack.add(aten.unique_consecutive.default, _unique("unique_consecutive", False))
pack.add(aten.unique_dim.default, _along_a_dim("unique_dim"))
pack.add(aten.unique_dim_consecutive.default, _along_a_dim("unique_dim_consecutive"))


pack.ask(aten.masked_select.default, aten.unique_consecutive.default)
