"""torch.autograd.functional inside mapped functions, against the loop."""

import pytest
import torch
from torch.autograd import functional as A

from vmap_core import vmap

torch.manual_seed(0)
X = torch.randn(5, 3, dtype=torch.double)
W, V = torch.randn(3, 3, dtype=torch.double), torch.randn(3, dtype=torch.double)


def f(x):
    return torch.tanh(W @ x) * x.sum()


def s(x):
    return f(x).square().sum()


CASES = {
    "vjp": lambda x: A.vjp(f, x, V)[1],
    "vjp_create_graph": lambda x: A.vjp(f, x, V, create_graph=True)[1].sin(),
    "vjp_strict": lambda x: A.vjp(f, x, V, strict=True)[1],
    "jvp": lambda x: A.jvp(f, x, V)[1],
    "jvp_own_vectors": lambda x: A.jvp(f, x, x.cos())[1],
    "vhp": lambda x: A.vhp(s, x, V)[1],
    "hvp": lambda x: A.hvp(s, x, V)[1],
    "jacobian": lambda x: A.jacobian(f, x),
    "jacobian_create_graph": lambda x: A.jacobian(f, x, create_graph=True),
    "jacobian_strict": lambda x: A.jacobian(f, x, strict=True),
    "jacobian_vectorized": lambda x: A.jacobian(f, x, vectorize=True),
    "jacobian_forward": lambda x: A.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    "jacobian_of_two": lambda x: A.jacobian(lambda a, b: a * b.sum(), (x, x.cos()))[1],
    "hessian": lambda x: A.hessian(s, x),
    "hessian_vectorized": lambda x: A.hessian(s, x, vectorize=True),
    "hessian_forward": lambda x: A.hessian(s, x, vectorize=True, outer_jacobian_strategy="forward-mode"),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    g = CASES[name]
    torch.testing.assert_close(vmap(g)(X), torch.stack([g(x) for x in X]))


@pytest.mark.parametrize("name", ["vjp", "jvp", "hvp", "jacobian", "jacobian_vectorized", "hessian"])
def test_nested(name):
    g = CASES[name]
    scales = torch.tensor([1.0, 2.0], dtype=torch.double)
    ours = vmap(lambda k: vmap(lambda x: g(x * k))(X))(scales)
    torch.testing.assert_close(ours, torch.stack([torch.stack([g(x * k) for x in X]) for k in scales]))


@pytest.mark.parametrize("name", ["vjp_create_graph", "jacobian_create_graph"])
def test_outer_gradients(name):
    g = CASES[name]
    x = X.clone().requires_grad_()
    ours = torch.autograd.grad(vmap(g)(x).square().sum(), x)
    torch.testing.assert_close(ours, torch.autograd.grad(torch.stack([g(row) for row in x]).square().sum(), x))
