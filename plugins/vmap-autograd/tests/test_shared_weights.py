"""Weights that are one tensor for all samples, used more than once, one use computed from another; twice differentiated."""

import pytest
import torch
import torch.nn.functional as F

from vmap_core import vmap

torch.manual_seed(0)
D = torch.double
X = torch.randn(2, 4, 3, dtype=D)
W = torch.randn(3, 3, dtype=D)

USES = {
    "linear": lambda w, x: F.linear(F.linear(x, w).sin(), w),
    "linear, with a bias from it": lambda w, x: F.linear(F.linear(x, w, w[0]).sin(), w, w.sum(0)),
    "matmul": lambda w, x: w @ (w @ x).tanh(),
    "from the left": lambda w, x: (x @ w).tanh() @ w,
    "matrices": lambda w, x: (w @ (w * x) @ w)[0],
    "three times": lambda w, x: F.linear(F.linear(F.linear(x, w).sin(), w).sin(), w),
    "conv1d": lambda w, x: F.conv1d(F.conv1d(x[None, None], w[:1, None], padding=1).sin(), w[:1, None], padding=1)[
        0, 0
    ],
    "in place": lambda w, x: F.linear(F.linear(x, w).mul_(2).sin_(), w),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_with_create_graph(use):
    def f(x):
        w = W.detach().requires_grad_()
        (g,) = torch.autograd.grad(use(w, x).square().sum(), w, create_graph=True)
        return g.detach(), torch.autograd.grad(g.square().sum(), w)[0]

    def loop(f):
        return lambda xs: tuple(torch.stack(parts) for parts in zip(*map(f, xs), strict=True))

    torch.testing.assert_close(vmap(f)(X[0]), loop(f)(X[0]))
    torch.testing.assert_close(vmap(f)(X[0, :1]), loop(f)(X[0, :1]))
    torch.testing.assert_close(vmap(f, in_dims=1)(X[0].T.contiguous()), loop(f)(X[0]))
    torch.testing.assert_close(vmap(vmap(f))(X), loop(loop(f))(X))
