"""Reductions: the batch dim stays where it is, the dims to reduce are counted around it."""

from __future__ import annotations

from typing import Any

import torch

from ..dispatch.planner import call_inherent
from ..levels.level import call
from ..rulekit.by_shape import by_shape
from ..rulekit.dims import ensure_bdim, physical_dims, to_front
from ..rulekit.families import along_dim, reduction
from ..rulekit.rule import RuleFunction, RulePack
from ..torch_compat.bindings import emitter
from ..torch_compat.operators import named_aten as aten
from ..torch_compat.tensors import dual_level

pack = RulePack("core.reduction")

pack.family(
    reduction,
    aten.all.dim,
    aten.amax.default,
    aten.amin.default,
    aten.any.dim,
    aten.count_nonzero.dim_IntList,
    aten.kthvalue.default,
    aten.linalg_vector_norm.default,
    aten.logsumexp.default,
    aten.max.dim,
    aten.mean.dim,
    aten.median.dim,
    aten.min.dim,
    aten.mode.default,
    aten.nanmean.default,
    aten.nanmedian.dim,
    aten.nansum.default,
    aten.norm.ScalarOpt_dim,
    aten.norm.ScalarOpt_dim_dtype,
    aten.prod.dim_int,
    aten.std.correction,
    aten.std.dim,
    aten.std_mean.correction,
    aten.std_mean.dim,
    aten.sum.dim_IntList,
    aten.var.correction,
    aten.var.dim,
    aten.var_mean.correction,
    aten.var_mean.dim,
)
pack.family(
    along_dim,
    aten._log_softmax.default,
    aten._safe_softmax.default,
    aten._softmax.default,
    aten.cummax.default,
    aten.cummin.default,
    aten.cumprod.default,
    aten.cumsum.default,
    aten.log_softmax.int,
    aten.logcumsumexp.default,
    aten.softmax.int,
)


def over_all(op: Any) -> RuleFunction:
    """Make the rule of a reduction over the whole sample, from the one that takes dims."""

    emit = emitter(op)

    def reduce_all(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        bdim = in_dims[0]
        dims = [d for d in range(x.ndim) if d != bdim]
        if not dims:  # a sample's scalar
            return emit(x.unsqueeze(-1), [x.ndim], *args, **kwargs), bdim
        return emit(x, dims, *args, **kwargs), 0

    return by_shape(reduce_all)


def over_flat(op: Any) -> RuleFunction:
    """Make the rule of a reduction over the whole sample, from one over a single dim."""

    def reduce_flat(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return op(flat(x, in_dims[0]), 1, *args, **kwargs), 0

    return reduce_flat


def flat(x: Any, bdim: int) -> Any:
    """Return each sample as a vector: (B, numel)."""
    x = to_front(x, bdim)
    return x.reshape(x.shape[0], x.shape[1:].numel())


pack.family(lambda op: over_all(op.overloadpacket.dims), aten.all.default, aten.any.default)
pack.family(lambda _: over_all(aten.mean.dim), aten.mean.default)
pack.family(lambda _: over_all(aten.sum.dim_IntList), aten.sum.default)

pack.family(lambda _: over_flat(aten.prod.dim_int), aten.prod.default)


def _truth(op: Any) -> RuleFunction:
    some_dims = reduction(op)

    def truth(info: Any, in_dims: Any, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """(*, n, *) -> bool (*, *); an empty list of dims reduces nothing, where other reductions take all."""
        if isinstance(dim, list | tuple) and not len(dim):
            return op(x, dim, keepdim), in_dims[0]
        return some_dims(info, in_dims, x, dim, keepdim)

    return truth


pack.family(_truth, aten.all.dims, aten.any.dims)


def _differentiated(x: Any) -> bool:
    """Tell whether a derivative, backward or forward, may be taken through ``x``."""
    if not x.is_floating_point():
        return False
    return (x.requires_grad and torch.is_grad_enabled()) or dual_level() >= 0


def _shared_by_ties(x: Any, dims: list[int], value: Any, *, skips_nan: bool = False) -> Any:
    """Give ``value``, picked from ``x`` over ``dims`` (kept), the derivative that all elements equal to it share.

    That is PyTorch's for max(), min() and median(), also of infinities and nan; amax's is nan there, and median(dim)
    leaves all to one element.
    """
    still = x.detach()
    nan = still != still
    ties = (still == value) | (nan & value.isnan() if skips_nan else nan)  # a nan that is not skipped is the value
    known = torch.where(value.isfinite(), value, 0)
    # the ties are zero but for inf and nan, which are left to give the value
    mean = torch.where(ties, x - known, 0).sum(dims, keepdim=True) / ties.sum(dims, keepdim=True)
    return (known + mean).squeeze(dims)


def _extreme(op: Any) -> RuleFunction:
    """Make the rule of max() and min() from amax and amin."""

    def extreme(info: Any, in_dims: Any, x: Any) -> Any:
        """(*) -> ()."""
        bdim = in_dims[0]
        dims = physical_dims(None, x.ndim - 1, bdim)
        if not dims:  # a sample's scalar
            x, dims = x.unsqueeze(-1), [1]
        if not _differentiated(x):
            return op(x, dims), 0
        return _shared_by_ties(x, dims, op(x.detach(), dims, True)), 0

    return extreme


pack.family(lambda _: _extreme(aten.amax.default), aten.max.default)
pack.family(lambda _: _extreme(aten.amin.default), aten.min.default)


def _middle(op: Any) -> RuleFunction:
    """Make the rule of median() from the one along a dim."""

    def middle(info: Any, in_dims: Any, x: Any) -> Any:
        """(*) -> ()."""
        x = flat(x, in_dims[0])
        if not x.shape[1]:
            whole = not x.is_floating_point() and x.dtype != torch.bool
            return x.new_full((x.shape[0],), torch.iinfo(x.dtype).min if whole else float("nan")), 0
        value = op(x.detach(), 1, True)[0]
        if not _differentiated(x):
            return value.squeeze(1), 0
        return _shared_by_ties(x, [1], value, skips_nan=op is aten.nanmedian.dim), 0

    return middle


pack.family(lambda op: _middle(op.overloadpacket.dim), aten.median.default, aten.nanmedian.default)


def _moment(op: Any) -> RuleFunction:
    op = op.overloadpacket.correction

    def moment(info: Any, in_dims: Any, x: Any, unbiased: bool = True) -> Any:
        """(*) -> ()."""
        return op(flat(x, in_dims[0]), [1], correction=int(unbiased)), 0

    return moment


pack.family(_moment, aten.var.default, aten.std.default, aten.var_mean.default, aten.std_mean.default)


def _arg(op: Any) -> RuleFunction:
    with_dim = reduction(op)

    def arg(info: Any, in_dims: Any, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        """(*, n, *) -> (*, *); over the flattened sample without a dim."""
        if dim is not None:
            return with_dim(info, in_dims, x, dim, keepdim)
        out = op(flat(x, in_dims[0]), 1)
        return (out.reshape(-1, *(1,) * (x.ndim - 1)) if keepdim else out), 0

    return arg


pack.family(_arg, aten.argmax.default, aten.argmin.default)


@pack.rule(aten.count_nonzero.default)
def count_nonzero(info, in_dims, x, dim=None):
    """(*, n, *) -> (*, *)."""
    if dim is None:
        return torch.count_nonzero(flat(x, in_dims[0]), 1), 0
    return pack.rules[aten.count_nonzero.dim_IntList].function(info, in_dims, x, [dim])


@pack.rule(aten.aminmax.default)
def aminmax(info, in_dims, x, *, dim=None, keepdim=False):
    """(*, n, *) -> twice (*, *)."""
    bdim, rank = in_dims[0], x.ndim - 1
    if dim is None:
        out = torch.aminmax(flat(x, bdim), dim=1)
        if keepdim:
            shape = (-1, *(1,) * rank)
            out = type(out)([o.reshape(shape) for o in out])  # type: ignore[arg-type]
        return out, 0
    if not rank:
        return torch.aminmax(x.unsqueeze(-1), dim=1), 0
    (d,) = physical_dims(dim, rank, bdim)
    return torch.aminmax(x, dim=d, keepdim=keepdim), bdim if keepdim else bdim - (d < bdim)


@pack.rule(aten.norm.Scalar)
def norm_scalar(info, in_dims, x, p=2):
    """(*) -> ()."""
    return torch.linalg.vector_norm(flat(x, in_dims[0]), p, 1), 0


@pack.rule(aten.norm.ScalarOpt_dtype)
def norm_dtype(info, in_dims, x, p, *, dtype):
    """(*) -> ()."""
    return torch.linalg.vector_norm(flat(x, in_dims[0]), 2 if p is None else p, 1, dtype=dtype), 0


@pack.logical(torch.norm, torch.Tensor.norm)
def norm(info, x, p="fro", dim=None, keepdim=False, out=None, dtype=None):
    """(*) -> (*) without ``dim``: PyTorch's Python functions, straight to the operator that they choose."""
    dims = [dim] if isinstance(dim, int) else dim
    if out is not None or (isinstance(p, str) and (p != "fro" or (dims is not None and len(dims) > 2))):
        return call_inherent(info, torch.norm, (x, p, dim, keepdim, out, dtype), {})
    order = 2.0 if p is None or p == "fro" else p
    return call(info, torch.linalg.vector_norm, (x, order, dims, keepdim), {} if dtype is None else {"dtype": dtype})


def _segments(info: Any, in_dims: Any, segments: dict[str, Any]) -> dict[str, Any]:
    """Give lengths or offsets (*, s) of segments a batch dim in front; the kernels take any number of such dims."""
    dims = in_dims[-1] if isinstance(in_dims[-1], dict) else {}
    return {
        name: None if x is None else ensure_bdim(x, dims.get(name), info.batch_size).contiguous()
        for name, x in segments.items()
    }


@pack.rule(aten.segment_reduce.default)
def segment_reduce(
    info, in_dims, data, reduce, *, lengths=None, indices=None, offsets=None, axis=0, unsafe=False, initial=None
):
    """(*, n, **) -> (*, s, **), segments along ``axis``."""
    data = ensure_bdim(data, in_dims[0], info.batch_size)
    given = _segments(info, in_dims, {"lengths": lengths, "indices": indices, "offsets": offsets})
    unsafe = unsafe or not info.batch_size  # the check takes the minimum of no lengths
    out = aten.segment_reduce.default(data.contiguous(), reduce, **given, axis=axis + 1, unsafe=unsafe, initial=initial)
    return out, 0


@pack.rule(aten._segment_reduce_backward.default)
def segment_reduce_backward(info, in_dims, grad, output, data, reduce, *, lengths=None, offsets=None, axis=0, **kwargs):
    """(*, s, **), (*, s, **), (*, n, **) -> (*, n, **)."""
    grad, output, data = (
        ensure_bdim(x, d, info.batch_size).contiguous() for x, d in zip((grad, output, data), in_dims, strict=False)
    )
    given = _segments(info, in_dims, {"lengths": lengths, "offsets": offsets})
    return aten._segment_reduce_backward.default(grad, output, data, reduce, **given, axis=axis + 1, **kwargs), 0
