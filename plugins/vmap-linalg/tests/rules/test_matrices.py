"""What shapes, views and gradients say beyond the table: ambiguous vectors, shared matrices, out=, vjp and jvp."""

import pytest
import torch
from torch.autograd import forward_ad, functional

from vmap_core import vmap
from vmap_linalg.ranks import matrices

L = torch.linalg
F64 = torch.float64
A = torch.randn(3, 4, 4, dtype=F64) + 4 * torch.eye(4, dtype=F64)
B = torch.randn(3, 4, 2, dtype=F64)
SPD = A @ A.mT


def loop(function, *args):
    return torch.stack([function(*row) for row in zip(*args, strict=True)])


def test_a_vector_as_long_as_the_batch_is_still_a_vector():
    a = torch.randn(3, 3, 3, dtype=F64) + 3 * torch.eye(3, dtype=F64)
    b = torch.randn(3, 3, dtype=F64)
    torch.testing.assert_close(vmap(L.solve)(a, b), loop(L.solve, a, b))
    torch.testing.assert_close(vmap(L.solve, in_dims=(None, 0))(a, b), loop(lambda b: L.solve(a, b), b))


def test_one_factorisation_for_a_shared_matrix(monkeypatch):
    seen = []
    solve = L.solve
    monkeypatch.setattr(L, "solve", lambda a, b, **kw: seen.append(a.shape) or solve(a, b, **kw))
    rule = matrices(torch.ops.aten.linalg_solve.default, "2 v* -> v*")

    class Info:
        batch_size = 3

    out, bdim = rule(Info, (None, 0), A[0], B)
    assert seen == [(4, 4)] and bdim == 0
    torch.testing.assert_close(out, loop(lambda b: solve(A[0], b), B))


def test_the_gradient_of_a_shared_matrix_is_that_of_the_sum():
    a = A[0].clone().requires_grad_()
    (got,) = torch.autograd.grad(vmap(lambda b: L.solve(a, b))(B).sum(), a)
    (expected,) = torch.autograd.grad(loop(lambda b: L.solve(a, b), B).sum(), a)
    torch.testing.assert_close(got, expected)


def test_the_batch_dim_stays_among_leading_dims():
    x = torch.randn(2, 3, 4, 4, dtype=F64)
    out = vmap(L.inv, in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(out, L.inv(x))
    assert out.stride() == L.inv(x).stride()


@pytest.mark.parametrize("function, like", [(L.inv, A), (L.det, A[:, 0, 0]), (L.cholesky, A)])
def test_out(function, like):
    out = torch.empty_like(like)

    def run(a, o):
        assert function(a, out=o) is o

    vmap(lambda a, o: run(a, o))(SPD, out)
    torch.testing.assert_close(out, loop(function, SPD))


def test_out_of_several():
    values, vectors = torch.empty(3, 4, dtype=F64), torch.empty(3, 4, 4, dtype=F64)
    vmap(lambda a, w, v: L.eigh(a, out=(w, v)) and None)(SPD, values, vectors)
    torch.testing.assert_close(vectors * values[:, None] @ vectors.mT, SPD)


FUNCTIONS = {
    "inv": L.inv,
    "det": L.det,
    "slogdet": lambda a: L.slogdet(a).logabsdet,
    "cholesky": L.cholesky,
    "eigvalsh": L.eigvalsh,
    "svdvals": L.svdvals,
    "qr": lambda a: L.qr(a).R,
    "pinv": L.pinv,
    "matrix_exp": lambda a: L.matrix_exp(a / 10),
    "lstsq": lambda a: L.lstsq(a, B[0]).solution,
    "solve": lambda a: L.solve(a, B[0]),
    "lu": lambda a: L.lu(a).U,
    "nuclear": lambda a: L.matrix_norm(a, "nuc"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vjp_inside(name):
    function = FUNCTIONS[name]

    def vjp(a):
        out = function(a)
        return functional.vjp(function, a, torch.ones_like(out))[1]

    torch.testing.assert_close(vmap(vjp)(SPD), loop(vjp, SPD))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jvp_inside(name):
    function = FUNCTIONS[name]

    def jvp(a, t):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(a, t))).tangent

    torch.testing.assert_close(vmap(jvp)(SPD, A), loop(jvp, SPD, A))


def _systems():
    """Operators of a factorisation and right-hand sides, whose leading dims broadcast."""
    a = torch.randn(6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    spd = a @ a.mT + 4 * torch.eye(4, dtype=torch.float64)
    yield "ldl_solve", torch.linalg.ldl_solve, torch.linalg.ldl_factor(spd)
    yield "lu_solve", torch.linalg.lu_solve, torch.linalg.lu_factor(a)
    yield "solve", torch.linalg.solve, (a,)
    yield "solve_ex", lambda a, b: torch.linalg.solve_ex(a, b)[0], (a,)
    yield "solve_triangular", lambda a, b: torch.linalg.solve_triangular(a, b, upper=True), (spd.triu(),)
    yield "triangular_solve", lambda a, b: torch.triangular_solve(b, a)[0], (spd.triu(),)
    yield "cholesky_solve", lambda a, b: torch.cholesky_solve(b, a), (torch.linalg.cholesky(spd),)


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize(("function", "factors"), [s[1:] for s in _systems()], ids=[s[0] for s in _systems()])
@pytest.mark.parametrize(
    "leads", [((3, 1), (3, 2)), ((1,), (2,)), ((), (2,)), ((2,), ()), ((3, 1), (1, 2)), ((1, 2), (3, 1))]
)
def test_leading_dims_broadcast(function, factors, leads):
    mine, its = leads
    b = torch.randn(*its, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    many = torch.stack([b, b * 2])
    count = torch.Size(mine).numel()
    factors = [f[:count].reshape(*mine, *f.shape[1:]) for f in factors]
    stacked = [torch.stack([f, f]) for f in factors]
    # each element alone: PyTorch's own ldl_solve reads out of bounds where leading dims broadcast
    lead = torch.broadcast_shapes(mine, its)
    wide = [f.expand(*lead, *f.shape[len(mine) :]) for f in factors]
    expected = torch.stack([function(*wide, v.expand(*lead, 4, 3).contiguous()) for v in (b, b * 2)])
    torch.testing.assert_close(vmap(lambda b: function(*factors, b))(many), expected)
    torch.testing.assert_close(vmap(function, (0,) * len(factors) + (0,))(*stacked, many), expected)
    got = vmap(lambda *f: function(*f, b))(*stacked)
    torch.testing.assert_close(got, torch.stack([expected[0]] * 2))
