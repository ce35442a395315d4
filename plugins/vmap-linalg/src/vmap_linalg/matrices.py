"""Operators on matrices that take any number of leading batch dims: the mapped dim is one more in front.

The table says, for each operator, the rank of each tensor argument without leading dims: 2 for a matrix, 1 for a
vector of pivots or reflectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import RulePack, ensure_bdim, logical_rank, pad_rank

aten = torch.ops.aten
pack = RulePack("linalg.matrices")


def matrices(op: Any, ranks: tuple[int, ...]) -> Any:
    """Make the rule of an operator from the ranks of its tensor arguments, in their order."""

    def matrices(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        at = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        lead = max(logical_rank(args[i], in_dims[i]) - r for i, r in zip(at, ranks, strict=False))
        for i, rank in zip(at, ranks, strict=False):
            if logical_rank(args[i], in_dims[i]) < rank:
                raise RuntimeError(
                    f"{op._schema.name[6:]}: The input tensor must have at least {rank} dimensions, but got "
                    f"{logical_rank(args[i], in_dims[i])}."
                )
        given = list(args)
        for i, rank in zip(at, ranks, strict=False):
            x = ensure_bdim(args[i], in_dims[i], info.batch_size)
            given[i] = pad_rank(x, 0, lead + rank) if len(at) > 1 else x
        return op(*given, **kwargs), 0

    return matrices


TABLE = {
    aten._linalg_det.default: (2,),
    aten._linalg_eigh.default: (2,),
    aten._linalg_eigvals.default: (2,),
    aten._linalg_slogdet.default: (2,),
    aten._linalg_svd.default: (2,),
    aten.cholesky.default: (2,),
    aten.cholesky_inverse.default: (2,),
    aten.cholesky_solve.default: (2, 2),
    aten.geqrf.default: (2,),
    aten.linalg_cholesky_ex.default: (2,),
    aten.linalg_eig.default: (2,),
    aten.linalg_eigvals.default: (2,),
    aten.linalg_householder_product.default: (2, 1),
    aten.linalg_inv_ex.default: (2,),
    aten.linalg_ldl_factor_ex.default: (2,),
    aten.linalg_ldl_solve.default: (2, 1, 2),
    aten.linalg_lu.default: (2,),
    aten.linalg_lu_factor_ex.default: (2,),
    aten.linalg_lu_solve.default: (2, 1, 2),
    aten.linalg_qr.default: (2,),
    aten.linalg_solve_triangular.default: (2, 2),
    aten.lu_unpack.default: (2, 1),
    aten.triangular_solve.default: (2, 2),
}
for _op, _ranks in TABLE.items():
    pack.add(_op, matrices(_op, _ranks))


@pack.rule(aten.linalg_matrix_exp.default)
def linalg_matrix_exp(info, in_dims, a):
    """(*, n, n) -> (*, n, n). The kernel takes contiguous matrices only."""
    return torch.linalg.matrix_exp(ensure_bdim(a, in_dims[0], info.batch_size).contiguous()), 0


@pack.rule(aten._linalg_check_errors.default)
def linalg_check_errors(info, in_dims, codes, api_name, *, is_matrix):
    """(*) -> nothing: raises if a factorisation failed, as it would for that sample alone."""
    aten._linalg_check_errors.default(codes, api_name, is_matrix=False)
    return None, None


@pack.rule(aten._linalg_solve_ex.default)
def linalg_solve_ex(info, in_dims, a, b, *, left=True, check_errors=False):
    """(*, n, n), (*, n) or (*, n, k) -> (*, n) or (*, n, k). Which one is decided on the logical shapes."""
    a_bdim, b_bdim = in_dims
    a_rank, b_rank = logical_rank(a, a_bdim), logical_rank(b, b_bdim)
    a, b = ensure_bdim(a, a_bdim, info.batch_size), ensure_bdim(b, b_bdim, info.batch_size)
    vector = b_rank == 1 or (a_rank - 1 == b_rank and a.shape[1:-1] == b.shape[1:])
    if vector:
        b = b.unsqueeze(-1)
    lead = max(a.ndim, b.ndim) - 1
    out = aten._linalg_solve_ex.default(
        pad_rank(a, 0, lead), pad_rank(b, 0, lead), left=left, check_errors=check_errors
    )
    return ((out[0].squeeze(-1), *out[1:]) if vector else out), 0


@pack.rule(aten.linalg_lstsq.default)
def linalg_lstsq(info, in_dims, a, b, rcond=None, *, driver=None):
    """(*, m, n), (*, m) or (*, m, k) -> solution, residuals, rank, singular values."""
    a_rank, b_rank = logical_rank(a, in_dims[0]), logical_rank(b, in_dims[1])
    a, b = (ensure_bdim(x, d, info.batch_size) for x, d in zip((a, b), in_dims[:2], strict=True))
    vector = b_rank == 1 or (a_rank - 1 == b_rank and a.shape[1:-1] == b.shape[1:])
    if vector:
        b = b.unsqueeze(-1)
    lead = max(a.ndim, b.ndim) - 1
    solution, residuals, rank, values = torch.linalg.lstsq(
        pad_rank(a, 0, lead), pad_rank(b, 0, lead), rcond=rcond, driver=driver
    )
    # what an operator leaves empty has no batch dim of its own
    outs = [solution.squeeze(-1) if vector else solution, residuals, rank, values]
    driver = driver or ("gels" if a.is_cuda else "gelsy")
    computed = (True, residuals.numel() > 0 or residuals.ndim > 1, driver != "gels", driver in ("gelsd", "gelss"))
    return tuple(outs), [0 if c else None for c in computed]


@pack.rule(aten.ormqr.default)
def ormqr(info, in_dims, a, tau, other, left=True, transpose=False):
    """(*, m, k), (*, k), (*, m, n) -> (*, m, n): the product with the Q of a QR factorisation."""
    a, tau, other = (ensure_bdim(x, d, info.batch_size) for x, d in zip((a, tau, other), in_dims[:3], strict=True))
    return torch.ormqr(a, tau, other, left, transpose), 0


@pack.rule(aten.linalg_pinv.atol_rtol_tensor)
def linalg_pinv(info, in_dims, a, *, atol=None, rtol=None, hermitian=False):
    """(*, m, n), tolerances (*) -> (*, n, m)."""
    kw_dims = in_dims[1] if len(in_dims) > 1 else {}
    a = ensure_bdim(a, in_dims[0], info.batch_size)
    tolerances = {}
    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None:
            value = ensure_bdim(value, kw_dims.get(name), info.batch_size)
            tolerances[name] = pad_rank(value, 0, a.ndim - 3)
    if not a.numel():
        return a.mT.clone(), 0
    return torch.linalg.pinv(a, hermitian=hermitian, **tolerances), 0
