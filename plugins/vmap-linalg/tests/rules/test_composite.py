"""Norms, Kronecker products, chains, pairs of rows, against the loop."""

from typing import Any

import pytest
import torch

from tests.calls import check_call, check_refused

F64, C128 = torch.float64, torch.complex128
L = torch.linalg
INF = float("inf")
VECTOR_ORDS = (None, 0, 1, 2, 3.5, -1, INF, -INF)
MATRIX_ORDS = ("fro", "nuc", 1, -1, 2, -2, INF, -INF)

torch.manual_seed(0)
A = torch.randn(4, 4, dtype=F64) + 4 * torch.eye(4, dtype=F64)
B, TALL, V = torch.randn(4, 2, dtype=F64), torch.randn(5, 3, dtype=F64), torch.randn(4, dtype=F64)

CASES: dict[str, tuple[Any, ...]] = {
    "multi_dot": (lambda x, y, z: L.multi_dot([x, y, z]), B.mT, A, B),
    "multi_dot, vectors": (lambda x, y: L.multi_dot([x, y, x]), V, A),
    "chain_matmul": (torch.chain_matmul, B.mT, A, B),
    "chain_matmul of one": (torch.chain_matmul, A),
    "tensorinv": (lambda x: L.tensorinv(x.reshape(2, 2, 4)), A),
    "tensorinv, first dim": (lambda x: L.tensorinv(x.reshape(4, 2, 2), ind=1), A),
    "vander": (lambda x: L.vander(x, N=3), V),
    "vander of rows": (L.vander, B),
    "vander of a scalar": (lambda x: L.vander(x, N=3), V[0]),
    "vecdot": (L.vecdot, V, V + 1),
    "cross": (L.cross, V[:3], V[1:]),
    "torch.cross": (torch.cross, V[:3], V[1:]),
    "torch.cross, dim": (lambda x, y: torch.cross(x, y, 1), TALL, TALL + 1),
    "kron": (torch.kron, A, B),
    "kron, ranks": (torch.kron, V, TALL),
    "kron of scalars": (torch.kron, V[0], V[1]),
    "kron with a scalar of another dtype": (torch.kron, A.bfloat16(), V[0]),
    "kron of scalars of two dtypes": (torch.kron, V[0].bfloat16(), V[1]),
    "kron of dtypes": (torch.kron, A, torch.arange(3)),
    "diagonal": (L.diagonal, A),
    "diagonal, dims": (lambda x: L.diagonal(x, offset=1, dim1=0, dim2=1), TALL),
    **{f"matrix_norm, {p}": (lambda x, p=p: L.matrix_norm(x, p, (1, 0), keepdim=True), TALL) for p in MATRIX_ORDS},
    **{f"norm, {p}": (lambda x, p=p: L.norm(x, p), TALL) for p in MATRIX_ORDS},
    **{f"norm of a vector, {p}": (lambda x, p=p: L.norm(x, p), V) for p in VECTOR_ORDS},
    "norm of a scalar": (L.norm, V[0]),
    "norm of three dims": (lambda x: L.norm(x, 1, (0, 2)), torch.stack([TALL, TALL + 1])),
    "matrix_norm of size one": (L.matrix_norm, A[:1, :1]),
    "matrix_norm, dtype": (lambda x: L.matrix_norm(x, 1, dtype=F64), TALL.float()),
}
DTYPES = (C128, torch.bfloat16, torch.int64)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, dtypes=DTYPES)


@pytest.mark.parametrize("p", [0, 1, 2, 3.0, INF])
def test_distances(p):
    check_call(torch.cdist, TALL, A[:, :3], p, dtypes=())
    check_call(torch.pdist, TALL, p, dtypes=())
    check_call(torch.pdist, TALL[:1], p, dtypes=())


REFUSED = {
    "norm of three dims": (L.norm, TALL.expand(2, 5, 3), 2),
    "matrix_norm of a vector": (L.matrix_norm, V),
    "multi_dot of other sizes": (lambda x, y: L.multi_dot([x, y]), A, TALL),
    "multi_dot of other dtypes": (lambda x, y: L.multi_dot([x, y]), A[:, :0], A[:0].float()),
    "multi_dot of one": (lambda x: L.multi_dot([x]), A),
    "chain_matmul of vectors": (torch.chain_matmul, V, V),
    "tensorinv of other sizes": (L.tensorinv, TALL),
    "cross without three": (torch.cross, A, A, 0),
    "vander of a scalar": (L.vander, V[0]),
    "pdist of a vector": (torch.pdist, V),
    "diagonal of a vector": (L.diagonal, V),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
