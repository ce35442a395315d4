"""Products against the loop: whichever side is batched, with broadcasting, vectors, biases, distances."""

import pytest
import torch
from torch.nn import functional as F

from tests.calls import check_call, check_refused
from vmap_core import vmap

A = torch.linspace(-2, 2, 24).sin().reshape(2, 3, 4)
B = torch.linspace(-1, 3, 40).cos().reshape(2, 4, 5)
M, N, V, W = A[0], B[0], A[0, 0], B[0, 0]
U = A[0, :, 0]  # of length 3
DTYPES = (torch.complex64, torch.bfloat16, torch.int64, torch.bool)

CASES = {
    "mm": (torch.mm, M, N),
    "mm of ones": (torch.mm, M[:1, :1], N[:1, :1]),
    "mm over nothing": (torch.mm, M[:, :0], N[:0]),
    "mv": (torch.mv, M, V),
    "dot": (torch.dot, V, V + 1),
    "vdot": (torch.vdot, V, V + 1),
    "inner": (torch.inner, A, V),
    "inner of matrices": (torch.inner, M, M + 1),
    "inner with a scalar": (torch.inner, M, V[0]),
    "bmm": (torch.bmm, A, B),
    "matmul": (torch.matmul, A, B),
    "matmul, vectors": (torch.matmul, V, V),
    "matmul, matrix and vector": (torch.matmul, A, V),
    "matmul, vector and matrix": (torch.matmul, V, B),
    "matmul, broadcast": (torch.matmul, A[:, None], B),
    "matmul, matrix and matrices": (torch.matmul, M, B),
    "linalg.matmul": (torch.linalg.matmul, A, N),
    "linear": (torch.nn.functional.linear, A, N.mT, W),
    "linear, no bias": (torch.nn.functional.linear, V, N.mT),
    "linear of one dim": (torch.nn.functional.linear, A, V),
    "addmm": (lambda c, a, b: torch.addmm(c, a, b, beta=2, alpha=-1), M @ N, M, N),
    "addmm, broadcast": (torch.addmm, W, M, N),
    "addmv": (torch.addmv, U, M, V),
    "baddbmm": (lambda c, a, b: torch.baddbmm(c, a, b, beta=0), A @ B, A, B),
    "baddbmm, broadcast": (torch.baddbmm, M @ N, A, B),
    "addbmm": (torch.addbmm, M @ N, A, B),
    "addr": (lambda c, x, y: torch.addr(c, x, y, alpha=3), M, U, V),
    "outer": (torch.outer, V, U),
    "ger": (torch.ger, V, V),
    "chained": (lambda a, b, x: a @ (b @ x), M, N, W),
    "inner with a scalar of another dtype": (torch.inner, M, V[0].double()),
    "vecdot": (torch.linalg.vecdot, A, V),
    "vecdot of scalars": (torch.linalg.vecdot, V[0], V[1]),
    "vecdot of a scalar and a vector": (torch.linalg.vecdot, V[0], V),
    "vecdot, dim": (lambda x, y: torch.linalg.vecdot(x, y, dim=0), M, M + 1),
    "cross": (torch.linalg.cross, M[:, :3], A[:, :1, :3].reshape(2, 3)[:1]),
    "cross, dim": (lambda x, y: torch.linalg.cross(x, y, dim=0), M, M + 1),
    "tensordot": (lambda x, y: torch.tensordot(x, y, ([2, 0], [1, 0])), A, B),
    "einsum": (lambda x, y: torch.einsum("bij,bjk->ki", x, y), A, B),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, dtypes=DTYPES)


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.5, float("inf")])
def test_distances(p):
    check_call(torch.cdist, A, A[:1, :2] + 0.1, p)
    check_call(torch.cdist, M, M[:1] + 0.1, p, dtypes=())


@pytest.mark.parametrize("bias", [W, None])
def test_the_result_of_linear_can_be_viewed_as_in_the_loop(bias):
    check_call(lambda x, w: torch.nn.functional.linear(x, w, bias).view(-1), A, N.mT, dtypes=())


def test_distances_by_products():
    for mode in ("use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"):
        check_call(lambda x, y, mode=mode: torch.cdist(x, y, 2.0, mode), M, M[:2] + 0.1)
    check_call(torch.ops.aten._euclidean_dist.default, M, M[:2] + 0.1, dtypes=(torch.float64,), gradients=False)


def test_products_of_three():
    bilinear = torch.nn.functional.bilinear
    check_call(bilinear, A[0, :2], N[:2], torch.linspace(-1, 1, 60).reshape(3, 4, 5), U)
    check_call(bilinear, V, W, torch.linspace(-1, 1, 60).reshape(3, 4, 5), dtypes=())
    w = torch.linspace(-1, 1, 60).reshape(3, 4, 5)
    check_call(torch.ops.aten._trilinear.default, M, w, B[1, :3], [1, 3], [0], [1, 2], [2, 3], dtypes=())


REFUSED = {
    "mm of a vector": (torch.mm, M, V),
    "mm of other sizes": (torch.mm, M, M),
    "mv of a matrix": (torch.mv, M, N),
    "dot of a matrix": (torch.dot, M, M),
    "dot of other lengths": (torch.dot, V, U),
    "bmm of a matrix": (torch.bmm, M, B),
    "matmul with a scalar": (torch.matmul, M, V[0]),
    "matmul of other sizes": (torch.matmul, M, U),
    "outer of a matrix": (torch.outer, M, V),
    "linear of other sizes": (torch.nn.functional.linear, U, N.mT),
    "cross of no three": (torch.linalg.cross, M, M),
    "dtypes": (torch.mm, M, N.double()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])


REFUSED_BY_THE_OPERATOR = {
    "dot of matrices": (torch.dot, M, M),
    "addmv by a matrix": (torch.addmv, U, M, M),
    "addr of matrices": (torch.addr, M, M, M),
    "baddbmm, other sizes in front": (torch.baddbmm, A @ B, A, B[:1]),
    "bmm, other sizes in front": (torch.bmm, A, B[:1]),
    "cdist of a vector": (torch.cdist, V, M),
    "vecdot of other lengths": (torch.linalg.vecdot, V, V[:1]),
    "bilinear of other leading dims": (torch.nn.functional.bilinear, M, A[0, :2], torch.ones(3, 4, 4)),
    "linear by three dims": (torch.nn.functional.linear, V, A, U),
    "linear, a bias of another dtype": (torch.nn.functional.linear, M, N.mT, W.double()),
    "linear, a bias of another size": (torch.nn.functional.linear, M, N.mT[:1], W),
    "mm of other dtypes without elements": (torch.mm, M[:, :0].double(), N[:0]),
}


@pytest.mark.parametrize("name", REFUSED_BY_THE_OPERATOR)
def test_refused_by_the_operator(name):
    check_refused(*REFUSED_BY_THE_OPERATOR[name])


def test_dtypes_of_mixed_operands():
    n = torch.arange(12).reshape(3, 4)
    check_call(lambda c, a, b: torch.addmv(c, a, b, beta=0.5, alpha=1.5), n[:, 0], n, n[0], dtypes=())
    check_call(lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=1.5), n @ n.T, n, n.T, dtypes=())
    check_call(torch.inner, V[0].double(), A, dtypes=(), gradients=False)
    check_call(torch.addr, M.double(), U, V, dtypes=(), gradients=False)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_linear_by_one_weight_expanded_wherever_its_batch_dim_is(dim):
    weight, bias, x = torch.randn(3, 4, requires_grad=True), torch.randn(3), torch.randn(5, 2, 4)
    for biases in (None, bias.expand(5, 3)):
        expanded = weight.expand(5, 3, 4).movedim(0, dim)
        got = vmap(F.linear, in_dims=(0, dim, None if biases is None else 0))(x, expanded, biases)
        expected = F.linear(x, weight, None if biases is None else bias)
        torch.testing.assert_close(got, expected)
        totals = (got.square().sum(), expected.square().sum())
        torch.testing.assert_close(*(torch.autograd.grad(t, weight)[0] for t in totals))
