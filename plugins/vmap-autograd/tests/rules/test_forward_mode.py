"""Dual tensors, made inside mapped functions and outside them."""

import pytest
import torch
import torch.autograd.forward_ad as fw

from vmap_core import vmap

torch.manual_seed(0)
X, T = torch.randn(4, 3, dtype=torch.double), torch.randn(4, 3, dtype=torch.double)
W = torch.randn(3, 3, dtype=torch.double)


def f(x):
    return torch.tanh(W @ x) * x.sum() + x[:, None].mul(W).amax(0)


def pushed(x, t):
    with fw.dual_level():
        primal, tangent = fw.unpack_dual(f(fw.make_dual(x, t)))
        return primal, tangent


LOOP = [torch.stack(parts) for parts in zip(*(pushed(x, t) for x, t in zip(X, T, strict=True)), strict=True)]


@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_inside(in_dims):
    x, t = (v if d == 0 else v.T.contiguous() for v, d in zip((X, T), in_dims, strict=True))
    torch.testing.assert_close(list(vmap(pushed, in_dims)(x, t)), LOOP)


def test_a_shared_primal_or_tangent():
    ours = vmap(lambda t: pushed(X[0], t))(T)
    torch.testing.assert_close(ours[1], torch.stack([pushed(X[0], t)[1] for t in T]))
    ours = vmap(lambda x: pushed(x, T[0]))(X)
    torch.testing.assert_close(ours[1], torch.stack([pushed(x, T[0])[1] for x in X]))
    ours = vmap(lambda s: pushed(X[0], T[0])[1] * s)(torch.arange(2.0))
    torch.testing.assert_close(ours[1], pushed(X[0], T[0])[1])


def test_nested():
    ours = vmap(lambda x: vmap(lambda t: pushed(x, t)[1])(T))(X)
    torch.testing.assert_close(ours, torch.stack([torch.stack([pushed(x, t)[1] for t in T]) for x in X]))


def test_outside():
    with fw.dual_level():
        primal, tangent = fw.unpack_dual(vmap(f)(fw.make_dual(X, T)))
    torch.testing.assert_close([primal, tangent], LOOP)


def test_a_dual_captured_from_outside():
    with fw.dual_level():
        w = fw.make_dual(W, W.cos())
        tangent = fw.unpack_dual(vmap(lambda x: torch.nn.functional.linear(x, w).sin())(X)).tangent
        expected = fw.unpack_dual((X @ w.T).sin()).tangent
    torch.testing.assert_close(tangent, expected)


def test_tangents_end_with_the_level_and_without_one_there_are_none():
    def g(x):
        with fw.dual_level():
            d = fw.make_dual(x, x)
        return fw.unpack_dual(d).tangent is None, fw.unpack_dual(x).tangent is None

    seen = []
    vmap(lambda x: seen.append(g(x)) or x)(X)
    assert seen == [(True, True)]


def test_reverse_over_forward():
    def g(x):
        x = x.detach().requires_grad_()
        with fw.dual_level():
            tangent = fw.unpack_dual(f(fw.make_dual(x, torch.ones(3, dtype=torch.double)))).tangent
        return torch.autograd.grad(tangent.sum(), x)[0]

    torch.testing.assert_close(vmap(g)(X), torch.stack([g(x) for x in X]))


def test_forward_over_reverse():
    def g(x, t):
        with fw.dual_level():
            dual = fw.make_dual(x.detach().requires_grad_(), t)
            (gradient,) = torch.autograd.grad(f(dual).square().sum(), dual, create_graph=True)
            return fw.unpack_dual(gradient).tangent.detach()

    torch.testing.assert_close(vmap(g)(X, T), torch.stack([g(x, t) for x, t in zip(X, T, strict=True)]))


def test_errors_are_pytorchs():
    with pytest.raises(ValueError, match="Expected primal to be floating point"), fw.dual_level():
        vmap(lambda x: fw.make_dual(x.long(), x))(X)
    with pytest.raises(RuntimeError, match="no level exists"):
        vmap(lambda x: fw.make_dual(x, x))(X)
