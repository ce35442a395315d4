"""A sample that an operator refuses: the error that the loop over the batch raises, word for word."""

import pytest
import torch

from vmap_core import vmap

L = torch.linalg
F64 = torch.float64
GOOD = torch.eye(3, dtype=F64) + 0.1
A = torch.stack([GOOD] * 4)
A[2, 1], A[3] = 0, 0  # both are singular; the loop meets the third first
SPD = torch.stack([GOOD, GOOD, -GOOD, 0 * GOOD])
PAIRS, SPD_PAIRS = torch.stack([A[[0, 0, 2, 0]], A[[1, 1, 1, 3]]], 1), torch.stack([SPD[[0, 0, 0, 3]], SPD], 1)
B, V = torch.ones(4, 3, 2, dtype=F64), torch.ones(4, 3, dtype=F64)


def message(run):
    with pytest.raises((RuntimeError, IndexError)) as caught:
        run()
    return type(caught.value), str(caught.value)


def compare(function, *args):
    expected = message(lambda: [function(*row) for row in zip(*args, strict=True)])
    for dim in range(min(a.ndim for a in args)):
        moved = [a.movedim(0, dim) for a in args]
        assert message(lambda d=dim, m=moved: vmap(function, in_dims=d)(*m)) == expected


SINGULAR = {
    "inv": L.inv,
    "torch.inverse": torch.inverse,
    "inv_ex": lambda a: L.inv_ex(a, check_errors=True),
    "lu_factor": L.lu_factor,
    "matrix_power": lambda a: L.matrix_power(a, -2),
    "solve": lambda a: L.solve(a, V[0]),
    "lstsq": lambda a: L.lstsq(a, B[0].expand(*a.shape[:-2], 3, 2), driver="gels"),
    "svd": lambda a: L.svd(a * float("nan")),
    "eigh": lambda a: L.eigh(a * float("nan")),
}


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("a", [A, PAIRS], ids=["matrix", "batch of matrices"])
def test_singular_sample(name, a):
    compare(SINGULAR[name], a)


@pytest.mark.parametrize("function", [L.cholesky, lambda a: L.cholesky_ex(a, check_errors=True)])
@pytest.mark.parametrize("a", [SPD, SPD_PAIRS], ids=["matrix", "batch of matrices"])
def test_indefinite_sample(function, a):
    compare(function, a)


@pytest.mark.parametrize("function", [L.inv, L.lu_factor, lambda a: L.tensorinv(a, ind=1)])
def test_singular_sample_two_levels_deep(function):
    nested = torch.stack([GOOD.expand(4, 3, 3), A])
    assert message(lambda: vmap(vmap(function))(nested)) == message(lambda: function(A[2]))
    assert message(lambda: vmap(vmap(function), in_dims=1)(nested)) == message(lambda: function(A[2]))


def test_singular_matrix_that_samples_share():
    assert message(lambda: vmap(lambda b: L.solve(A[3], b))(B)) == message(lambda: L.solve(A[3], B[0]))


WRONG = {
    "not square": (L.inv, (B,)),
    "no matrix": (L.det, (V,)),
    "no matrix: svd": (L.svd, (V,)),
    "no matrix: pinv": (L.pinv, (V,)),
    "no matrix: pinv with tolerances": (lambda a, t: L.pinv(a, rtol=t), (V, V[:, 0])),
    "integers": (L.cholesky, (A.long(),)),
    "rows": (L.solve, (SPD, torch.ones(4, 5, 2, dtype=F64))),
    "a vector on the left": (lambda a, b: L.solve(a, b, left=False), (SPD, V)),
    "a vector where none goes": (lambda a, b: L.solve_triangular(a, b, upper=True), (SPD, V)),
    "types": (L.solve, (A, B.float())),
    "reflectors": (L.householder_product, (A, torch.ones(4, 5, dtype=F64))),
    "norm of a batch": (lambda a: L.norm(a, 2), (A.expand(2, 4, 3, 3),)),
    "matrix norm of a vector": (L.matrix_norm, (V,)),
    "matrix norm over one dim twice": (lambda a: L.matrix_norm(a, dim=(1, 1)), (A,)),
    "chain": (lambda a, b: L.multi_dot([a, b, a]), (B, B)),
    "chain of one": (lambda a: L.multi_dot([a]), (A,)),
    "chain of vectors": (torch.chain_matmul, (V, V)),
    "distances": (torch.pdist, (V,)),
    "powers": (lambda v: L.vander(v, N=1), (V,)),
    "tensor that is no square": (L.tensorinv, (B,)),
    "renorm": (lambda v: torch.renorm(v, 2, 0, 1.0), (V,)),
    "no three": (lambda b: torch.cross(b, b, 1), (B,)),
    "driver": (lambda a, b: L.lstsq(a, b, driver="none"), (A, B)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    function, args = WRONG[name]
    compare(function, *args)


def test_info_outputs_do_not_raise():
    inverse, info = vmap(L.inv_ex)(A)
    assert info.tolist() == [L.inv_ex(a).info for a in A] and inverse.shape == A.shape
    assert vmap(lambda a: L.cholesky_ex(a).info)(SPD).tolist() == [0, 0, 1, 1]
    result, info = vmap(lambda b: L.solve_ex(A[3], b))(B)
    assert result.shape == B.shape and info.tolist() == [1] * 4
