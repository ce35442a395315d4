"""Operators that take any number of leading batch dims, by the ranks of their tensors without those dims.

``"2 1 -> 2"``: a matrix and a vector in, a matrix out; a star marks a right-hand side and what is solved for it (see
`ranks`). Operators that are not here are made of these. PyTorch 2.14 has no more ``cholesky`` and ``qr``, and has
``linalg_polar`` and ``linalg_matrix_sqrth`` new.
"""

from __future__ import annotations

from functools import partial

from vmap_core.extend import RulePack
from vmap_core.extend import named_aten as aten

from .ranks import matrices

pack = RulePack("linalg.matrices")

TABLE = (
    # determinants
    (aten._linalg_det.default, "2 -> 0 2 1"),
    (aten._linalg_slogdet.default, "2 -> 0 0 2 1"),
    (aten.det.default, "2 -> 0"),
    (aten.linalg_det.default, "2 -> 0"),
    (aten.linalg_slogdet.default, "2 -> 0 0"),
    (aten.logdet.default, "2 -> 0"),
    (aten.slogdet.default, "2 -> 0 0"),
    # factorisations
    (aten._linalg_eigh.default, "2 -> 1 2"),
    (aten._linalg_eigvals.default, "2 -> 1"),
    (aten._linalg_svd.default, "2 -> 2 1 2"),
    (aten._lu_with_info.default, "2 -> 2 1 0"),
    (aten.geqrf.default, "2 -> 2 1"),
    (aten.cholesky.default, "2 -> 2"),
    (aten.linalg_cholesky.default, "2 -> 2"),
    (aten.linalg_cholesky_ex.default, "2 -> 2 0"),
    (aten.linalg_eig.default, "2 -> 1 2"),
    (aten.linalg_eigh.default, "2 -> 1 2"),
    (aten.linalg_eigvals.default, "2 -> 1"),
    (aten.linalg_eigvalsh.default, "2 -> 1"),
    (aten.linalg_ldl_factor.default, "2 -> 2 1"),
    (aten.linalg_ldl_factor_ex.default, "2 -> 2 1 0"),
    (aten.linalg_lu.default, "2 -> 2 2 2"),
    (aten.linalg_lu_factor.default, "2 -> 2 1"),
    (aten.linalg_lu_factor_ex.default, "2 -> 2 1 0"),
    (aten.linalg_polar.default, "2 -> 2 2"),
    (aten.linalg_qr.default, "2 -> 2 2"),
    (aten.linalg_svd.default, "2 -> 2 1 2"),
    (aten.linalg_svdvals.default, "2 -> 1"),
    (aten.qr.default, "2 -> 2 2"),
    (aten.svd.default, "2 -> 2 1 2"),
    # what they are packed in
    (aten.linalg_householder_product.default, "2 1 -> 2"),
    (aten.lu_unpack.default, "2 1 -> 2 2 2"),
    (aten.orgqr.default, "2 1 -> 2"),
    (aten.ormqr.default, "2 1 2* -> 2*"),
    # inverses, functions and figures of a matrix
    (aten.cholesky_inverse.default, "2 -> 2"),
    (aten.inverse.default, "2 -> 2"),
    (aten.linalg_cond.default, "2 -> 0"),
    (aten.linalg_cond.p_str, "2 -> 0"),
    (aten.linalg_inv.default, "2 -> 2"),
    (aten.linalg_inv_ex.default, "2 -> 2 0"),
    (aten.linalg_matrix_power.default, "2 -> 2"),
    (aten.linalg_matrix_sqrth.default, "2 -> 2"),
    (aten.linalg_matrix_rank.atol_rtol_float, "2 -> 0"),
    (aten.linalg_matrix_rank.default, "2 -> 0"),
    (aten.linalg_pinv.atol_rtol_float, "2 -> 2"),
    (aten.linalg_pinv.default, "2 -> 2"),
    (aten.matrix_power.default, "2 -> 2"),
    (aten.pinverse.default, "2 -> 2"),
    # systems
    (aten._linalg_solve_ex.default, "2 v* -> v* 2 1 0"),
    (aten.cholesky_solve.default, "2* 2 -> 2*"),
    (aten.linalg_ldl_solve.default, "2 1 2* -> 2*"),
    (aten.linalg_lu_solve.default, "2 1 2* -> 2*"),
    (aten.linalg_solve.default, "2 v* -> v*"),
    (aten.linalg_solve_ex.default, "2 v* -> v* 0"),
    (aten.linalg_solve_triangular.default, "2 2* -> 2*"),
    (aten.lu_solve.default, "2* 2 1 -> 2*"),
    (aten.triangular_solve.default, "2* 2 -> 2* 2"),
)
for _op, _ranks in TABLE:
    pack.family(partial(matrices, signature=_ranks), _op)
