"""torch.func's transforms inside our mapped functions: the code of a user who changes nothing but vmap."""

import pytest
import torch

from vmap_core import vmap

torch.manual_seed(0)
W, X = torch.randn(3, dtype=torch.double), torch.randn(4, 3, dtype=torch.double)


def loss(w, x):
    return (torch.tanh(w * x).sum() + (x @ w) ** 2).square()


def vjp(w, x):
    out, pull = torch.func.vjp(loss, w, x)
    return out, pull(torch.ones_like(out))


CASES = {
    "grad": torch.func.grad(loss),
    "grad_and_value": torch.func.grad_and_value(loss, argnums=(0, 1)),
    "vjp": vjp,
    "jvp": lambda w, x: torch.func.jvp(loss, (w, x), (x, w)),
    "jacrev": lambda w, x: torch.func.jacrev(lambda w: torch.tanh(w * x))(w),
    "jacfwd": torch.func.jacfwd(loss, argnums=1),
    "hessian": torch.func.hessian(loss),
    "linearize": lambda w, x: torch.func.linearize(loss, w, x)[1](w, x),
    "vmap": lambda w, x: torch.vmap(lambda a: a * x.sum(), out_dims=0)(w),
    "vmap of grad": lambda w, x: torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x[:, None] * x),
}


@pytest.mark.parametrize("name", CASES)
def test_inside(name):
    f = CASES[name]
    if name == "linearize":  # theirs traces, and cannot be mapped
        expected = torch.func.vmap(lambda w, x: torch.func.jvp(loss, (w, x), (w, x))[1], in_dims=(None, 0))(W, X)
    else:
        expected = torch.func.vmap(f, in_dims=(None, 0))(W, X)
    torch.testing.assert_close(vmap(f, in_dims=(None, 0))(W, X), expected)
    if name == "linearize":
        return
    outside = f(W, X[0])  # without a level they are PyTorch's own
    torch.testing.assert_close(torch.utils._pytree.tree_map(lambda t: t[0], expected), outside)


def test_they_are_pytorchs_own_outside():
    with pytest.raises(RuntimeError, match="vjp or jacrev"):
        torch.func.grad(lambda x: x)(W)
