"""Sorting, searching and counting."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import DataDependentError, user_location
from ..levels.read import every_sample
from ..rulekit.dims import ensure_bdim, logical_rank, physical_dims, promote_like_samples
from ..rulekit.families import along_dim
from ..rulekit.loop import loop
from ..rulekit.rule import RuleFunction, RulePack
from ..torch_compat.operators import named_aten as aten
from .reduction import flat

pack = RulePack("core.sorting")

pack.family(
    along_dim,
    aten.argsort.default,
    aten.argsort.stable,
    aten.sort.default,
    aten.sort.stable,
)


@pack.rule(aten.topk.default)
def topk(info, in_dims, x, k, dim=-1, largest=True, sorted=True):
    """(*, n, *) -> twice (*, k, *)."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        physical_dims(dim, 0, None)
        # PyTorch gives the scalar itself for k = 0 too
        values, indices = torch.topk(x.unsqueeze(-1), k or 1, 1, largest, sorted)
        return (values.squeeze(-1), indices.squeeze(-1)), 0
    (d,) = physical_dims(dim, rank, bdim)
    return torch.topk(x, k, d, largest, sorted), bdim


@pack.rule(aten.msort.default)
def msort(info, in_dims, x):
    """(n, *) -> (n, *), sorted along the first dim."""
    return along_dim(aten.sort.default)(info, in_dims, x, 0)[0][0], in_dims[0] if x.ndim > 1 else 0


@pack.rule(aten.searchsorted.Tensor)
def searchsorted(info, in_dims, sorted_sequence, x, *, sorter=None, **kwargs):
    """(n) or (*, n), (*, m) -> (*, m): insertion points."""
    s_bdim, x_bdim, *rest = in_dims
    sorter_bdim = rest[0].get("sorter") if rest else None
    s_rank, x_rank = sorted_sequence.ndim - (s_bdim is not None), x.ndim - (x_bdim is not None)
    sorted_sequence, x = promote_like_samples((sorted_sequence, x), (s_bdim, x_bdim))
    if s_bdim is None and sorter_bdim is None and s_rank == 1:
        return torch.searchsorted(sorted_sequence, x, sorter=sorter, **kwargs), x_bdim
    seq = ensure_bdim(sorted_sequence, s_bdim, info.batch_size)
    x = ensure_bdim(x, x_bdim, info.batch_size)
    if sorter is not None:
        sorter = ensure_bdim(sorter, sorter_bdim, info.batch_size).contiguous()
    shape = x.shape
    if s_rank == 1:  # one sequence a sample, any shape of values
        x = x.reshape(x.shape[0], shape[1:].numel())
    elif x_rank != s_rank:
        raise RuntimeError(
            f"torch.searchsorted(): boundaries tensor should be 1 dimension or the first N-1 dimensions of boundaries "
            f"tensor and input value tensor must match, but we got boundaries tensor {list(seq.shape[1:])} and input "
            f"value tensor {list(shape[1:])}"
        )
    out = torch.searchsorted(seq.contiguous(), x.contiguous(), sorter=sorter, **kwargs)
    return out.reshape(shape), 0


@pack.rule(aten.searchsorted.Scalar)
def searchsorted_scalar(info, in_dims, sorted_sequence, x, *, sorter=None, **kwargs):
    """(n), number -> (): its insertion point."""
    dtype = torch.result_type(sorted_sequence, x)
    value = torch.scalar_tensor(x, dtype=dtype, device=sorted_sequence.device)
    return searchsorted(info, (in_dims[0], None, *in_dims[2:]), sorted_sequence, value, sorter=sorter, **kwargs)


def _one_dim(boundaries: Any, bdim: int | None) -> None:
    if logical_rank(boundaries, bdim) != 1:
        raise RuntimeError(f"boundaries tensor must be 1 dimension, but got dim({logical_rank(boundaries, bdim)})")


@pack.rule(aten.bucketize.Tensor)
def bucketize(info, in_dims, x, boundaries, *, out_int32=False, right=False):
    """(*), (n) -> (*)."""
    _one_dim(boundaries, in_dims[1])
    return searchsorted(info, (in_dims[1], in_dims[0]), boundaries, x, out_int32=out_int32, right=right)


@pack.rule(aten.bucketize.Scalar)
def bucketize_scalar(info, in_dims, x, boundaries, *, out_int32=False, right=False):
    """number, (n) -> ()."""
    _one_dim(boundaries, in_dims[1])
    return searchsorted_scalar(info, (in_dims[1], None), boundaries, x, out_int32=out_int32, right=right)


@pack.rule(aten.bincount.default)
def bincount(info, in_dims, x, weights=None, minlength=0):
    """(n) -> (m): all samples at once, their values apart by an offset.

    The length is the largest value plus one, for each sample its own; so ``minlength`` must cover all samples, or the
    samples must agree.
    """
    x_bdim, w_bdim = (*in_dims, None)[:2]
    x = ensure_bdim(x, x_bdim, info.batch_size)
    n = x.shape[0]
    if x.ndim != 2:
        raise RuntimeError("bincount only supports 1-d non-negative integral inputs.")
    if x.numel():
        lengths = (x.amax(1) + 1).clamp(min=minlength)
        longest, shortest = int(every_sample(lengths).max()), int(every_sample(lengths).min())
        if int(every_sample(x).min()) < 0:
            raise RuntimeError("bincount only supports 1-d non-negative integral inputs.")
        if longest != shortest:
            raise DataDependentError(
                f"vmap: bincount gives results of different lengths ({shortest} to {longest}) for different samples, "
                f"at {user_location()}. Instead: pass minlength={longest} or more, above every value."
            )
    else:
        longest = minlength
    offset = torch.arange(n, device=x.device)[:, None] * longest
    if weights is not None:
        weights = ensure_bdim(weights, w_bdim, info.batch_size)
        if weights.shape != x.shape:
            raise RuntimeError("weights should be 1-d and have the same length as input")
        weights = weights.reshape(-1)
    counts = torch.bincount((x + offset).reshape(-1), weights, n * longest)
    if weights is not None and not n and x.shape[1]:  # of no numbers at all PyTorch counts in int64
        counts = counts.to(torch.float32 if weights.dtype == torch.float32 else torch.float64)
    return counts.reshape(n, longest), 0


@pack.rule(aten.histc.default)
def histc(info, in_dims, x, bins=100, min=0, max=0):
    """(*) -> (bins): counts in equal bins of [min, max], by default of the sample's own range."""
    x = flat(x, in_dims[0])
    n = x.shape[0]
    if bins <= 0:
        raise RuntimeError("bins must be > 0")
    if min > max:
        raise RuntimeError("torch.histc: max must be larger than min")
    if min == max and x.shape[1]:
        low, high = x.amin(1, True), x.amax(1, True)
        # nan if any sample's range is not finite: one read for all samples
        if not bool(every_sample((low - low).sum() + (high - high).sum()).sum() == 0):
            raise RuntimeError("torch.histc: range of a sample is not finite")
    else:
        low, high = x.new_full((n, 1), min), x.new_full((n, 1), max)
    same = low == high
    low, high = torch.where(same, low - 1, low), torch.where(same, high + 1, high)
    inside = (x >= low) & (x <= high)
    index = ((x - low) * bins / (high - low)).nan_to_num(0, 0, 0).long().clamp(0, bins - 1)
    return x.new_zeros(n, bins).scatter_add(1, index, inside.to(x.dtype)), 0


def _histogram(op: Any) -> RuleFunction:
    def histogram(info: Any, in_dims: Any, x: Any, bins: Any = 100, *, weight: Any = None, **kwargs: Any) -> Any:
        """(*), (m + 1) or a number m -> (m), (m + 1): counts between edges, or sums of weights; and the edges."""
        given = isinstance(bins, torch.Tensor)
        if (
            not given and kwargs.get("range") is None
        ):  # edges of the sample's own range, which the kernel rounds in its way
            return loop(info, op, in_dims, x, bins, weight=weight, **kwargs)
        dims = in_dims[-1] if isinstance(in_dims[-1], dict) else {}
        x = ensure_bdim(x, in_dims[0], info.batch_size)
        edges = ensure_bdim(bins, in_dims[1], info.batch_size) if given else bins
        ones = torch.ones_like(x) if weight is None else ensure_bdim(weight, dims.get("weight"), info.batch_size)
        like = edges.new_zeros(edges.shape[1:]) if given else bins  # of one sample: it raises where the operator does
        common = op(x.new_zeros(x.shape[1:]), like, weight=ones.new_zeros(ones.shape[1:]), **kwargs)[1]
        if not given:
            edges = ensure_bdim(common, None, info.batch_size)
        x, edges = flat(x, 0).contiguous(), edges.contiguous()
        inside = (x >= edges[:, :1]) & (x <= edges[:, -1:])
        place = (torch.searchsorted(edges, x, right=True) - 1).clamp(0, edges.shape[1] - 2)
        hist = x.new_zeros(x.shape[0], edges.shape[1] - 1).scatter_add(1, place, flat(ones, 0) * inside)
        if kwargs.get("density"):
            hist = hist / hist.sum(1, True) / edges.diff()
        return (hist, edges if given else common), (0, 0 if given else None)

    return histogram


pack.family(_histogram, aten.histogram.bins_tensor, aten.histogram.bin_ct)


def _membership(op: Any) -> RuleFunction:
    def isin(info: Any, in_dims: Any, elements: Any, test: Any, **kwargs: Any) -> Any:
        """(*), (*) -> bool (*): which elements are among the test elements."""
        invert = kwargs.get("invert", False)
        e_bdim, t_bdim = in_dims[:2]
        if t_bdim is None and isinstance(elements, torch.Tensor):
            # unique within each sample is not unique among all
            return op(elements, test, invert=invert), e_bdim
        if not isinstance(test, torch.Tensor):
            return op(elements, test, **kwargs), e_bdim
        values = flat(test, t_bdim)
        if not isinstance(elements, torch.Tensor):
            found = (values == elements).any(1)
            return (~found if invert else found), 0
        elements = ensure_bdim(elements, e_bdim, info.batch_size)
        shape = elements.shape
        ordered = values.sort(1).values
        e = elements.reshape(shape[0], shape[1:].numel())
        if not ordered.shape[1]:
            found = torch.zeros_like(e, dtype=torch.bool)
        else:
            dtype = torch.promote_types(ordered.dtype, e.dtype)
            ordered, e = ordered.to(dtype), e.to(dtype)
            at = torch.searchsorted(ordered.contiguous(), e.contiguous()).clamp(max=ordered.shape[1] - 1)
            found = ordered.gather(1, at) == e
        return (~found if invert else found).reshape(shape), 0

    return isin


pack.family(_membership, aten.isin.Tensor_Tensor, aten.isin.Tensor_Scalar, aten.isin.Scalar_Tensor)
