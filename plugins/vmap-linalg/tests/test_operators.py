"""Operators on matrices against the loop: in_dims, nesting, batch sizes, outer gradients; never in the slow loop.

Those of the rule modules with tests of their own are in rules. Where factors are not unique, what they rebuild is compared.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import vmap_core
from vmap_core import vmap
from vmap_core.testing import check_rule

F64, C128 = torch.float64, torch.complex128
L = torch.linalg
Case = tuple[Callable[..., Any], tuple[Any, ...]]

MATRIX_ORDS = ("fro", "nuc", 1, -1, 2, -2, float("inf"), -float("inf"))


def spectral(dtype: torch.dtype) -> dict[str, Case]:
    """Factorisations: what their factors rebuild."""
    a, spd, tall, _ = matrices(dtype)

    def svd(x: Any, full: bool = False) -> Any:
        u, s, vh = L.svd(x, full_matrices=full)
        return s, u[..., : s.shape[-1]] * s.to(u.dtype) @ vh

    def old_svd(x: Any) -> Any:
        u, s, v = torch.svd(x)
        return u * s.to(u.dtype) @ v.mH

    def eigh(x: Any) -> Any:
        values, vectors = L.eigh(x)
        return values, vectors * values.to(vectors.dtype) @ vectors.mH

    def eig(x: Any) -> Any:
        values, vectors = L.eig(x)
        return vectors * values @ L.inv(vectors)

    def ldl(x: Any) -> Any:
        return L.ldl_solve(*L.ldl_factor(x), tall[:4])

    def low_rank(function: Any) -> Any:
        def rebuilt(x: Any) -> Any:
            u, s, v = function(x, q=3)
            return u * s.to(u.dtype) @ v.mH

        return rebuilt

    old = (
        {"torch.qr": (lambda x: torch.matmul(*torch.qr(x)), (tall,))} if hasattr(torch.ops.aten, "qr") else {}
    )  # until 2.13
    return {
        **old,
        "svd": (svd, (tall,)),
        "svd, full": (lambda x: svd(x, full=True), (tall,)),
        "svdvals": (L.svdvals, (tall,)),
        "torch.svd": (old_svd, (tall,)),
        "eigh": (eigh, (spd,)),
        "eigvalsh": (L.eigvalsh, (spd,)),
        "eig": (eig, (a,)),
        "eigvals": (lambda x: L.eigvals(x).sum(-1), (a,)),
        "qr": (lambda x: torch.matmul(*L.qr(x)), (tall,)),
        "qr, complete": (lambda x: torch.matmul(*L.qr(x, mode="complete")), (tall,)),
        "lu": (L.lu, (a,)),
        "torch.lu": (torch.lu, (a,)),
        "ldl": (ldl, (spd,)),
        "svd_lowrank": (low_rank(torch.svd_lowrank), (tall,)),
        "pca_lowrank": (low_rank(torch.pca_lowrank), (tall,)),
    }


def matrices(dtype: torch.dtype) -> tuple[Any, Any, Any, Any]:
    """Return a well-conditioned matrix, a positive definite one, a tall one and a vector."""
    torch.manual_seed(0)
    a = torch.randn(4, 4, dtype=dtype) + 4 * torch.eye(4, dtype=dtype)
    return a, a @ a.mH, torch.randn(5, 3, dtype=dtype), torch.randn(4, dtype=dtype)


def unique(dtype: torch.dtype) -> dict[str, Case]:
    """Everything of which the result is unique."""
    a, spd, tall, v = matrices(dtype)
    b = torch.randn(4, 2, dtype=dtype)
    lu, pivots = L.lu_factor(a)
    chol, (packed, tau), (ld, ld_pivots) = L.cholesky(spd), torch.geqrf(tall), L.ldl_factor(spd)
    wide = torch.randn(2, 5, dtype=dtype)
    old = {"torch.cholesky": (torch.cholesky, (spd,))} if hasattr(torch.ops.aten, "cholesky") else {}  # until 2.13
    new = {"polar": (L.polar, (tall,)), "matrix_sqrth": (L.matrix_sqrth, (spd,))} if hasattr(L, "polar") else {}  # 2.14
    cases: dict[str, Case] = {
        **old,
        **new,
        "det": (L.det, (a,)),
        "slogdet": (L.slogdet, (a,)),
        "logdet": (torch.logdet, (spd,)),
        "cholesky": (L.cholesky, (spd,)),
        "cholesky, upper": (lambda x: L.cholesky(x, upper=True), (spd,)),
        "cholesky_ex": (L.cholesky_ex, (spd,)),
        "cholesky_inverse": (torch.cholesky_inverse, (chol,)),
        "cholesky_solve": (torch.cholesky_solve, (b, chol)),
        "geqrf": (torch.geqrf, (tall,)),
        "qr, r": (lambda x: L.qr(x, mode="r").R.abs(), (tall,)),
        "lu_factor_ex": (L.lu_factor_ex, (a,)),
        "lu_unpack": (torch.lu_unpack, (lu, pivots)),
        "lu_solve": (L.lu_solve, (lu, pivots, b)),
        "lu_solve, right": (lambda f, p, y: L.lu_solve(f, p, y, left=False), (lu, pivots, b.mT)),
        "lu_solve, adjoint": (lambda f, p, y: L.lu_solve(f, p, y, adjoint=True), (lu, pivots, b)),
        "torch.lu_solve": (torch.lu_solve, (b, lu, pivots)),
        "ldl_factor_ex": (L.ldl_factor_ex, (spd,)),
        "ldl_solve": (L.ldl_solve, (ld, ld_pivots, b)),
        "inv": (L.inv, (a,)),
        "inv_ex": (L.inv_ex, (a,)),
        "torch.inverse": (torch.inverse, (a,)),
        "pinv": (L.pinv, (tall,)),
        "pinv, hermitian": (lambda x: L.pinv(x, hermitian=True), (spd,)),
        "pinv, empty": (L.pinv, (tall[:, :0],)),
        "torch.pinverse": (torch.pinverse, (tall,)),
        "matrix_rank": (L.matrix_rank, (tall,)),
        "solve": (L.solve, (a, b)),
        "solve, vector": (L.solve, (a, v)),
        "solve, right": (lambda x, y: L.solve(x, y, left=False), (a, b.mT)),
        "solve, batches": (L.solve, (a.expand(2, 4, 4), torch.stack([v, v + 1]))),
        "solve_ex": (L.solve_ex, (a, b)),
        "solve_triangular": (lambda x, y: L.solve_triangular(x, y, upper=True), (a, b)),
        "solve_triangular, right": (lambda x, y: L.solve_triangular(x, y, upper=False, left=False), (a, b.mT)),
        "triangular_solve": (torch.triangular_solve, (b, a)),
        "matrix_power": (lambda x: L.matrix_power(x, 5), (a,)),
        "matrix_power, negative": (lambda x: L.matrix_power(x, -2), (a,)),
        "matrix_power, zero": (lambda x: L.matrix_power(x, 0), (a,)),
        "householder_product": (L.householder_product, (packed, tau)),
        "ormqr": (torch.ormqr, (packed, tau, wide.mT)),
        "ormqr, right": (lambda q, t, x: torch.ormqr(q, t, x, left=False), (packed, tau, wide)),
        "ormqr, transposed": (lambda q, t, x: torch.ormqr(q, t, x, True, True), (packed, tau, wide.mT)),
        "tensorsolve": (lambda x, y: L.tensorsolve(x.reshape(2, 2, 4), y), (a, v.reshape(2, 2))),
        "torch.vander": (torch.vander, (v,)),
        "trace": (torch.trace, (a,)),
        "renorm": (lambda x: torch.renorm(x, 2, 0, 1.0), (a,)),
    }
    for p in MATRIX_ORDS:
        cases[f"cond, {p}"] = (lambda x, p=p: L.cond(x, p), (a,))
    return cases


UNIQUE = unique(F64)
SPECTRAL = spectral(F64)
RANDOM = ("svd_lowrank", "pca_lowrank")

# What PyTorch has no derivative of, for the loop neither: these factors, the tolerances of pinv, what is written in place.
WITHOUT_DERIVATIVE = ("geqrf", "qr, r", "qr, complete", "ldl", "ldl_factor_ex", "ldl_solve", "torch.vander",
                      *(f"cond, {p}" for p in ("fro", 1, -1, float("inf"), -float("inf"))))  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated")


@pytest.mark.parametrize("name", UNIQUE)
def test_unique(name):
    function, args = UNIQUE[name]
    assert check_rule(function, *args, gradients=name not in WITHOUT_DERIVATIVE)


@pytest.mark.parametrize("name", unique(C128))
def test_complex(name):
    function, args = unique(C128)[name]
    assert check_rule(function, *args, nested=False, batch_sizes=(3,), gradients=name not in WITHOUT_DERIVATIVE)


@pytest.mark.parametrize("name", [n for n in SPECTRAL if n not in RANDOM])
@pytest.mark.parametrize("dtype", [F64, C128], ids=["real", "complex"])
def test_what_factors_rebuild(name, dtype):
    function, args = spectral(dtype)[name]
    assert check_rule(function, *args, gradients=name not in WITHOUT_DERIVATIVE)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("in_dim", [0, 1, 2])
def test_random_projections_rebuild_the_matrix(name, in_dim):
    function, (x,) = SPECTRAL[name]
    batch = torch.stack([x, x + 1, 2 * x]).movedim(0, in_dim)
    with warnings.catch_warnings():
        warnings.simplefilter("error", vmap_core.FallbackWarning)
        got = vmap(function, in_dims=in_dim, randomness="different")(batch)
    expected = batch.movedim(in_dim, 0)
    torch.testing.assert_close(got, expected - expected.mean(-2, keepdim=True) if name[0] == "p" else expected)
