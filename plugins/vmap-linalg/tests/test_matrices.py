"""Linear algebra against the loop, each operand batched or not, without the slow loop."""

import warnings

import pytest
import torch

import vmap_core
from vmap_core import vmap

A = torch.randn(3, 4, 4, dtype=torch.float64) + 4 * torch.eye(4, dtype=torch.float64)
B = torch.randn(3, 4, 2, dtype=torch.float64)
SPD = A @ A.mT


@pytest.fixture(autouse=True)
def no_loop():
    with warnings.catch_warnings():
        warnings.simplefilter("error", vmap_core.FallbackWarning)
        yield


def check(function, *args, in_dims=None):
    in_dims = in_dims or (0,) * len(args)
    got = vmap(function, in_dims=in_dims)(*args)
    rows = [[a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)] for i in range(3)]
    torch.testing.assert_close(got, torch.stack([function(*row) for row in rows]))


@pytest.mark.parametrize("name", ["inv", "det", "cholesky", "eigvalsh", "svdvals", "matrix_exp", "pinv", "matrix_norm"])
def test_one_matrix(name):
    check(getattr(torch.linalg, name), SPD)
    check(getattr(torch.linalg, name), SPD.movedim(0, -1).contiguous(), in_dims=(-1,))


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("vector", [False, True])
def test_solve(in_dims, vector):
    a = A if in_dims[0] == 0 else A[0]
    b = B[..., 0] if vector else B
    b = b if in_dims[1] == 0 else b[0]
    check(torch.linalg.solve, a, b, in_dims=in_dims)


def test_a_vector_as_long_as_the_batch_is_still_a_vector():
    a = torch.randn(3, 3, 3, dtype=torch.float64) + 3 * torch.eye(3, dtype=torch.float64)
    check(torch.linalg.solve, a, torch.randn(3, 3, dtype=torch.float64))


def test_factorisations_rebuild():
    q, r = vmap(torch.linalg.qr)(A)
    torch.testing.assert_close(q @ r, A)
    u, s, vh = vmap(lambda a: torch.linalg.svd(a, full_matrices=False), in_dims=-1)(B.movedim(0, -1))
    torch.testing.assert_close(u * s[:, None] @ vh, B)
    p, lower, upper = vmap(torch.linalg.lu)(A)
    torch.testing.assert_close(p @ lower @ upper, A)


def test_a_singular_sample_raises():
    with pytest.raises(torch.linalg.LinAlgError):
        vmap(torch.linalg.inv)(torch.stack([A[0], torch.zeros(4, 4, dtype=torch.float64)]))


def test_gradients():
    a = A.clone().requires_grad_()
    (got,) = torch.autograd.grad(vmap(torch.linalg.inv)(a).sum(), a)
    (expected,) = torch.autograd.grad(torch.linalg.inv(a).sum(), a)
    torch.testing.assert_close(got, expected)
