"""lobpcg for a batch, step by step as PyTorch's for one matrix."""

import pytest
import torch

import vmap_core
from vmap_core import vmap

F64 = torch.float64


@pytest.fixture(autouse=True)
def no_loop():
    with vmap_core.fallback_policy("error"):
        yield


def problem(count=5, m=16, n=3, seed=0):
    torch.manual_seed(seed)
    a = torch.randn(count, m, m, dtype=F64)
    a = a @ a.mT + torch.eye(m, dtype=F64) * torch.arange(1, count + 1)[:, None, None]
    return a, torch.randn(count, m, n, dtype=F64)


def rebuilt(out):
    values, vectors = out
    return values, vectors @ vectors.mT  # eigenvectors are known up to their signs


def compare(function, *args, in_dims=0):
    dims = (in_dims,) * len(args) if not isinstance(in_dims, tuple) else in_dims
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    rows = [[x if d is None else x.select(d, i).clone() for x, d in zip(args, dims, strict=True)] for i in range(size)]
    got = vmap(lambda *a: rebuilt(function(*a)), in_dims=dims)(*args)
    for g, e in zip(got, zip(*(rebuilt(function(*row)) for row in rows), strict=True), strict=True):
        torch.testing.assert_close(g, torch.stack(e), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("method", ["ortho", "basic"])
@pytest.mark.parametrize("niter", [0, 1, 2, 4, 30, None])
def test_each_step(method, largest, niter):
    if niter is None and method == "basic":
        niter = 12  # its Cholesky factorisation fails close to convergence, for one matrix too
    a, x = problem()
    compare(lambda a, x: torch.lobpcg(a, X=x, niter=niter, largest=largest, method=method, tol=1e-3), a, x)


@pytest.mark.parametrize("in_dims", [(0, 0), (2, 1), (-1, -1), (0, None), (None, 0)])
def test_in_dims(in_dims):
    tensors = [t[0] if d is None else t.movedim(0, d) for t, d in zip(problem(), in_dims, strict=True)]
    compare(lambda a, x: torch.lobpcg(a, k=2, X=x), *tensors, in_dims=in_dims)


def test_generalised_problem_and_preconditioner():
    a, x = problem()
    b = problem(seed=1)[0] / 10
    compare(lambda a, b, x: torch.lobpcg(a, B=b, X=x), a, b, x)
    inverse = torch.diag_embed(1 / a.diagonal(0, 1, 2))
    function = lambda a, x, k: torch.lobpcg(a, X=x, iK=k, method="basic", niter=4, largest=False)  # noqa: E731
    compare(function, a, x, inverse)
    compare(function, a, x, inverse[0], in_dims=(0, 0, None))


def test_a_guess_that_is_exact_in_some_samples():
    a, x = problem()
    a[1] = torch.diag(torch.arange(1.0, 17, dtype=F64))
    x[1] = torch.eye(16, dtype=F64)[:, -3:]
    compare(lambda a, x: torch.lobpcg(a, X=x), a, x)


def test_levels_and_leading_dims():
    a, x = problem(6)
    a, x = a.reshape(2, 3, 16, 16), x.reshape(2, 3, 16, 3)
    expected = rebuilt(torch.lobpcg(a, X=x))
    function = lambda a, x: rebuilt(torch.lobpcg(a, X=x))  # noqa: E731
    for got in (vmap(function)(a, x), vmap(vmap(function))(a, x), vmap(function, in_dims=1, out_dims=1)(a, x)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [0, 1])
def test_sizes(size):
    a, x = problem(size)
    values, vectors = vmap(lambda a, x: torch.lobpcg(a, k=2, X=x))(a, x)
    assert values.shape == (size, 2) and vectors.shape == (size, 16, 2)


def test_gradients():
    a, x = problem(3)

    def gradient(run):
        leaf = a.clone().requires_grad_()
        values, projections = run(leaf)
        return torch.autograd.grad(values.sum() + (projections * torch.arange(16)).sum(), leaf)[0]

    got = gradient(lambda leaf: vmap(lambda a, x: rebuilt(torch.lobpcg(a, X=x)))(leaf, x))
    expected = gradient(lambda leaf: rebuilt(torch.lobpcg(leaf, X=x)))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_guess_is_random():
    a, _ = problem(3, m=10)
    with pytest.raises(RuntimeError, match="random"):
        vmap(lambda a: torch.lobpcg(a, k=2))(a)
    expected = torch.linalg.eigvalsh(a).flip(-1)[:, :2]
    for randomness in ("same", "different"):
        values, _ = vmap(lambda a: torch.lobpcg(a, k=2), randomness=randomness)(a)
        torch.testing.assert_close(values, expected)


def test_wrong_arguments():
    a, x = problem(m=8)
    with pytest.raises(ValueError, match="not applicable"):
        vmap(lambda a, x: torch.lobpcg(a, X=x))(a, x)


def test_a_tracker_sees_every_sample():
    a, x = problem(3)
    seen = []
    compare(lambda a, x: torch.lobpcg(a, X=x, tracker=lambda worker: seen.append(worker.ivars["istep"])), a, x)
    assert seen.count(1) == 2 * 3  # mapped, and in the loop


def test_batched_preconditioner_two_levels_deep_is_refused():
    a, x = problem(6)
    a, x = a.reshape(2, 3, 16, 16), x.reshape(2, 3, 16, 3)
    with pytest.raises(vmap_core.UnsupportedError, match="preconditioner"):
        vmap(vmap(lambda a, x, k: torch.lobpcg(a, X=x, iK=k, method="basic")))(a, x, a)
