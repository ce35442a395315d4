"""Shapes over memory: view() of results whose batch dim lies inside the sample's memory, and resize_."""

import pytest
import torch

from vmap_core import vmap
from vmap_core.testing import check_rule

X = torch.randn(3, 5, 4)  # batch dim in the middle


def loop(f, x, dim=1):
    return torch.stack([f(row) for row in x.unbind(dim)])


def test_a_result_can_be_viewed_as_in_the_loop():
    def f(x):
        return (x * 2).view(-1)

    torch.testing.assert_close(vmap(f, in_dims=1)(X), loop(f, X))
    torch.testing.assert_close(
        vmap(lambda x: (x + 1).view(2, -1) * 2, in_dims=1)(X), loop(lambda x: (x + 1).view(2, -1) * 2, X)
    )


@pytest.mark.parametrize("shape", [(-1,), [-1], (2, 6), [4, 3], torch.Size((12,))])
def test_however_the_shape_is_given(shape):
    for _ in range(2):  # the second time by what is remembered of the first
        torch.testing.assert_close(
            vmap(lambda x: (x * 2).view(shape), in_dims=1)(X), loop(lambda x: (x * 2).view(shape), X)
        )


def test_the_view_stays_a_view():
    def f(x):
        y = x * 2
        flat = y.view(-1)
        flat.add_(1)
        y[0].mul_(3)
        return y, flat

    got = vmap(f, in_dims=1)(X)
    for g, e in zip(got, zip(*[f(row) for row in X.unbind(1)], strict=True), strict=True):
        torch.testing.assert_close(g, torch.stack(e))


def test_what_others_see_is_not_moved():
    def another_view(x):
        y = x * 2
        first = y[0]
        return y.view(-1), first

    def twice(x):
        y = x * 2
        same = [y, y.detach()]
        return y.view(-1), same[1]

    for f in (another_view, twice):
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            vmap(f, in_dims=1)(X)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        vmap(lambda x: x.view(-1), in_dims=1)(X)  # nor does the loop's row
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        vmap(lambda x: (x * 2).T.view(-1), in_dims=1)(X)


def test_gradients_go_through():
    x = X.clone().requires_grad_()
    weights = torch.randn(5, 12)

    def f(x):
        y = x.sin()
        return y.view(-1) * y.sum()

    (got,) = torch.autograd.grad((vmap(f, in_dims=1)(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((loop(f, x) * weights).sum(), x)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [(3, 4), (2, 4), (12,), (0,), (2, 0)])
def test_resize_keeps_the_first_elements(size):
    x = torch.randn(3, 4)
    assert check_rule(lambda x: x.clone().resize_(size) * 2, x)
    assert check_rule(lambda x, like: x.clone().resize_as_(like) * 2, x, torch.zeros(size))
    assert check_rule(lambda x: x.clone().resize_(3, 5).flatten()[:12] * 2, x)
    assert check_rule(lambda x: x.clone().resize_(1) * 2, torch.tensor(3.0))
