"""Operators on matrices of which there is more to say than ranks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vmap_core.extend import RulePack, aten, ensure_bdim, logical_rank, pad_rank

from .ranks import function, matrices, raise_for_sample

pack = RulePack("linalg.special")


@pack.rule(aten._linalg_check_errors.default)
def linalg_check_errors(info, in_dims, codes, api_name, *, is_matrix):
    """(*) -> nothing: raises if a factorisation failed, with the text of the first sample that failed."""
    codes = ensure_bdim(codes, in_dims[0], info.batch_size).contiguous()
    try:
        aten._linalg_check_errors.default(codes, api_name, is_matrix=False)
    except RuntimeError as error:
        raise_for_sample(error, None, (), (), {}, codes.shape[1:])
    return None, None


_exponential = matrices(aten.linalg_matrix_exp.default, "2 -> 2")


@pack.rule(aten.linalg_matrix_exp.default, aten.matrix_exp.default)
def matrix_exp(info, in_dims, a):
    """(*, n, n) -> (*, n, n). The kernel, and its backward, view the matrices as one batch."""
    bdim = in_dims[0]
    if bdim < a.ndim - 2:
        return _exponential(info, in_dims, a.contiguous())
    return _exponential(info, (0,), a.movedim(bdim, 0).contiguous())


_least_squares = matrices(aten.linalg_lstsq.default, "2 v* -> v* 1* 0 1")


@pack.rule(aten.linalg_lstsq.default)
def linalg_lstsq(info, in_dims, a, b, rcond=None, *, driver=None):
    """(*, m, n), (*, m) or (*, m, k) -> solution, residuals, rank, singular values."""
    out, out_dims = _least_squares(info, in_dims, a, b, rcond, driver=driver)
    if (driver or ("gels" if a.is_cuda else "gelsy")) == "gels":
        out_dims[2] = None  # computes no rank: an empty vector, for all samples
    return out, out_dims


def _with_tolerances(op: Any, positional: str | None = None) -> None:
    """Enter an operator whose tolerances may be tensors (*), as keywords or as its second argument."""

    def tolerances(info: Any, in_dims: Any, a: Any, *args: Any, **kwargs: Any) -> Any:
        lead = logical_rank(a, in_dims[0]) - 2
        if lead < 0:
            raise_for_sample(None, op, in_dims, (a, *args), kwargs)
        given, dims = dict(kwargs), {k: d for d in in_dims if isinstance(d, dict) for k, d in d.items()}
        if positional:
            given[positional], args, dims[positional] = args[0], args[1:], in_dims[1]
        if args:
            (given["hermitian"],) = args
        at = [k for k, v in given.items() if isinstance(v, Tensor)]
        lead = max([lead, *(logical_rank(given[k], dims.get(k)) for k in at)])
        a = pad_rank(ensure_bdim(a, in_dims[0], info.batch_size), 0, lead + 2)
        for k in at:
            given[k] = pad_rank(ensure_bdim(given[k], dims.get(k), info.batch_size), 0, lead)
        return function(op)(a, **given), 0

    pack.add(op, tolerances)


_with_tolerances(aten.linalg_pinv.atol_rtol_tensor)
_with_tolerances(aten.linalg_pinv.rcond_tensor, "rcond")
_with_tolerances(aten.linalg_matrix_rank.atol_rtol_tensor)
_with_tolerances(aten.linalg_matrix_rank.tol_tensor, "tol")


pack.ask(aten.linalg_lstsq.default)
