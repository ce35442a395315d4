"""backward() and .grad inside mapped functions."""

import pytest
import torch
from torch import nn

from vmap_core import UnsupportedError, vmap

torch.manual_seed(0)
X = torch.randn(4, 3)
W = torch.randn(3)


def loop(f, *args):
    return torch.stack([f(*rows) for rows in zip(*args, strict=True)])


def test_gradients_accumulate_per_sample():
    def f(x):
        w, u = W.detach().requires_grad_(), x.detach().requires_grad_()
        (u * w).sin().sum().backward()
        (w.sum() * x[0]).backward()
        return w.grad * u.grad

    torch.testing.assert_close(vmap(f)(X), loop(f, X))


def test_torch_autograd_backward_with_several_roots_and_vectors():
    def f(x):
        w = W.detach().requires_grad_()
        torch.autograd.backward([w * x, (w * w).sum()], [x, None])
        return w.grad

    torch.testing.assert_close(vmap(f)(X), loop(f, X))


def test_nested():
    def inner(s, x):
        w = W.detach().requires_grad_()
        (w * x * s).cos().sum().backward()
        return w.grad

    S = torch.randn(2)
    ours = vmap(lambda x: vmap(inner, in_dims=(0, None))(S, x))(X)
    torch.testing.assert_close(ours, torch.stack([torch.stack([inner(s, x) for s in S]) for x in X]))


def test_an_optimizer_inside():
    def f(x, y):
        w = nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            ((w * x).sum() - y).square().backward()
            optimizer.step()
        return w.detach()

    Y = torch.randn(4)
    torch.testing.assert_close(vmap(f)(X, Y), loop(f, X, Y))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_create_graph():
    def f(x):
        w = W.detach().requires_grad_()
        ((w * x).sum() ** 3).backward(create_graph=True)
        (h,) = torch.autograd.grad(w.grad.sum(), w)
        return h

    torch.testing.assert_close(vmap(f)(X), loop(f, X))


def test_setting_and_clearing_grad():
    def f(x):
        w = W.detach().requires_grad_()
        w.grad = x.clone()
        (w * x).sum().backward()
        first = w.grad.clone()
        w.grad = None
        assert w.grad is None
        w.grad = torch.ones(3)
        (w * x).sum().backward()
        w.grad.zero_()
        return first + w.grad

    torch.testing.assert_close(vmap(f)(X), loop(f, X))


def test_retain_grad():
    def f(x):
        w = W.detach().requires_grad_()
        y = w * x
        y.retain_grad()
        (y * y).sum().backward()
        return y.grad

    torch.testing.assert_close(vmap(f)(X), loop(f, X))
    w = W.clone().requires_grad_()
    with pytest.raises(UnsupportedError, match="retain_grad on a tensor that does not depend on the sample"):
        vmap(lambda x: ((y := torch.relu(w)).retain_grad(), y * x)[1])(X)


def test_a_leaf_from_outside_is_an_error_that_names_the_ways_out():
    w = W.clone().requires_grad_()
    with pytest.raises(UnsupportedError, match=r"leaf of shape \(3,\) from outside.*inputs=\[\.\.\.\]"):
        vmap(lambda x: (w * x).sum().backward())(X)
    x = X.clone().requires_grad_()

    def captures_a_leaf_of_its_own(x):
        v = x.detach().requires_grad_()
        return vmap(lambda s: (v * s).sum().backward())(torch.ones(2))

    with pytest.raises(UnsupportedError, match="from outside"):
        vmap(lambda x: (x * x).sum().backward())(x)
    with pytest.raises(UnsupportedError, match="from outside"):  # of an outer level's function
        vmap(captures_a_leaf_of_its_own)(X)
    assert w.grad is None and x.grad is None


def test_the_sum_where_inputs_asks_for_it():
    w = W.clone().requires_grad_()
    vmap(lambda x: (w * x).sum().backward(inputs=[w]))(X)
    torch.testing.assert_close(w.grad, X.sum(0))
    w.grad = None
    vmap(lambda x: w.sum().backward(x[0], inputs=[w]))(X)  # a root that all samples share, and a batched vector
    torch.testing.assert_close(w.grad, X[:, 0].sum().expand(3))
    w.grad = None
    vmap(lambda x: w.sum().backward(inputs=[w]))(X)  # ... and none: once a sample
    torch.testing.assert_close(w.grad, torch.full((3,), 4.0))


def test_reading_such_a_sum_inside_is_an_error():
    w = W.clone().requires_grad_()

    def f(x):
        (w * x).sum().backward(inputs=[w])
        return w.grad * x

    with pytest.raises(UnsupportedError, match="sum over all samples"):
        vmap(f)(X)


def test_scalars_only_without_a_vector():
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        vmap(lambda x: (W.detach().requires_grad_() * x).backward())(X)
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        vmap(lambda x: (W.detach().requires_grad_() * x).backward(torch.ones(2)))(X)
