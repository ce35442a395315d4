"""Shapes: against the loop, and view() of results whose batch dim lies inside the sample's memory."""

import pytest
import torch

from tests.calls import check_call, check_refused
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


def test_a_sample_is_viewed_as_the_loop_s_is():
    def another_view(x):
        y = x * 2
        first = y[0]
        return y.view(-1), first

    def twice(x):
        y = x * 2
        same = [y, y.detach()]
        return y.view(-1), same[1]

    for f in (another_view, twice):
        got, expected = vmap(f, in_dims=1)(X), [f(x) for x in X.unbind(1)]
        for g, e in zip(got, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(g, torch.stack(e))
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


M, V, S = torch.linspace(-2, 2, 12).sin().reshape(3, 4), torch.linspace(0, 1, 4), torch.tensor(0.7)
CASES = {
    "reshape": (lambda x: x.reshape(2, -1), M),
    "reshape to a scalar": (lambda x: x.reshape(()), V[:1]),
    "reshape of a scalar": (lambda x: x.reshape(1, 1), S),
    "reshape of nothing": (lambda x: x.reshape(0, 2), M[:0]),
    "reshape of a transposed one": (lambda x: x.t().reshape(-1), M),
    "flatten": (torch.flatten, M),
    "flatten, dims": (lambda x: x.flatten(1, -1), M.reshape(1, 3, 2, 2)),
    "flatten of a scalar": (torch.flatten, S),
    "unflatten": (lambda x: x.unflatten(-1, (2, -1)), M),
    "reshape_as": (lambda x, y: x.reshape_as(y), M, torch.zeros(2, 6)),
    "view_as": (lambda x, y: (x * 1).view_as(y), M, torch.zeros(2, 6)),
    "_unsafe_view": (lambda x: torch.ops.aten._unsafe_view(x * 1, (4, 3)), M),
    "_reshape_alias": (lambda x: torch.ops.aten._reshape_alias(x * 1, (4, 3), (3, 1)), M),
    "ravel": (torch.ravel, M),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    check_call(*CASES[name])


REFUSED = {
    "other sizes": (lambda x: x.reshape(5, -1), M),
    "two that are inferred": (lambda x: x.reshape(-1, -1), M),
    "one inferred of nothing": (lambda x: x.reshape(0, -1), M[:0]),
    "negative": (lambda x: x.reshape(-2, 6), M),
    "flatten backwards": (lambda x: x.flatten(1, 0), M),
    "flatten, no such dim": (lambda x: x.flatten(2), M),
    "unflatten to other sizes": (lambda x: x.unflatten(0, (2, 2)), M),
    "view_as other sizes": (lambda x, y: x.view_as(y), M, V),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
