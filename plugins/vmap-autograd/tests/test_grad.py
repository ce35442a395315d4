"""torch.autograd.grad inside mapped functions, in each combination of what is batched, against the loop."""

import pytest
import torch

from vmap_core import use_packs, vmap

X = torch.randn(4, 3, dtype=torch.float64)
W = torch.randn(3, dtype=torch.float64)


def loss(x, w):
    return torch.tanh(x * w).sum() + (x @ w) ** 2


def loop(function, *args):
    return torch.stack([function(*row) for row in zip(*args, strict=True)])


def test_jacobian_by_one_batched_grad():
    x = X[0].clone().requires_grad_()
    y = x.pow(2) * x.sum() + torch.sin(x).cumsum(0)
    expected = torch.autograd.functional.jacobian(lambda x: x.pow(2) * x.sum() + torch.sin(x).cumsum(0), x)
    got = vmap(lambda v: torch.autograd.grad(y, x, v)[0])(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(got, expected)


def test_jacobian_keeps_a_graph():
    x = X[0].clone().requires_grad_()
    y = x.pow(3)
    rows = vmap(lambda v: torch.autograd.grad(y, x, v, create_graph=True)[0])(torch.eye(3, dtype=torch.float64))
    (second,) = torch.autograd.grad(rows.sum(), x)
    torch.testing.assert_close(second, 6 * x.detach())


@pytest.mark.parametrize("in_dim", [0, 1])
def test_per_sample_gradients(in_dim):
    x = X.movedim(0, in_dim).contiguous()
    got = vmap(lambda s: torch.autograd.functional.vjp(lambda w: loss(s, w), W)[1], in_dims=in_dim)(x)
    expected = loop(lambda s: torch.autograd.functional.vjp(lambda w: loss(s, w), W)[1], X)
    torch.testing.assert_close(got, expected)


def test_a_leaf_made_inside():
    def gradient(s):
        w = W.detach().requires_grad_()
        return torch.autograd.grad(loss(s, w), w)[0]

    torch.testing.assert_close(vmap(gradient)(X), loop(gradient, X))
    assert not W.requires_grad


def test_batched_inputs_and_vectors():
    def gradient(x, v):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(torch.sin(x) * x.sum(), x, v)[0]

    torch.testing.assert_close(vmap(gradient)(X, X.flip(0)), loop(gradient, X, X.flip(0)))


def test_second_derivatives():
    def hessian_vector(x):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(x, W), x, create_graph=True)
        return torch.autograd.grad(g @ W, x)[0]

    torch.testing.assert_close(vmap(hessian_vector)(X), loop(hessian_vector, X))


def test_a_leaf_that_all_samples_share_warns_and_is_right():
    w = W.clone().requires_grad_()

    def gradient(s):
        return torch.autograd.grad(loss(s, w), w)[0]

    with pytest.warns(UserWarning, match="one vector per sample"):
        got = vmap(gradient)(X)
    torch.testing.assert_close(got, loop(gradient, X))


def test_nested():
    def gradient(s, t):
        w = W.detach().requires_grad_()
        return torch.autograd.grad(loss(s, w) * t, w)[0]

    t = torch.randn(5, dtype=torch.float64)
    got = vmap(lambda s: vmap(lambda t: gradient(s, t))(t))(X)
    expected = torch.stack([torch.stack([gradient(s, u) for u in t]) for s in X])
    torch.testing.assert_close(got, expected)


def test_unused_inputs():
    def gradient(s):
        w, u = W.detach().requires_grad_(), W.detach().requires_grad_()
        g, none = torch.autograd.grad(loss(s, w), (w, u), allow_unused=True)
        assert none is None
        return g

    assert vmap(gradient)(X).shape == (4, 3)


def test_outer_gradients_through_inner_ones():
    x = X.clone().requires_grad_()

    def gradient(s):
        w = W.detach().requires_grad_()
        return torch.autograd.grad(loss(s, w), w, create_graph=True)[0]

    (got,) = torch.autograd.grad(vmap(gradient)(x).sum(), x)
    (expected,) = torch.autograd.grad(loop(gradient, x).sum(), x)
    torch.testing.assert_close(got, expected)


def test_without_the_pack_it_is_a_clear_error():
    def gradient(s):
        w = W.detach().requires_grad_()
        return torch.autograd.grad(loss(s, w), w)[0]

    with use_packs(), pytest.raises(RuntimeError, match="pip install vmap-autograd"):
        vmap(gradient)(X)
