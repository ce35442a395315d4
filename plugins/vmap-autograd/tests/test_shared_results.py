"""What a Function makes of tensors that all samples share: every sample's own, to be viewed and written to."""

import pytest
import torch
import torch.nn.functional as F

from vmap_core import vmap

torch.manual_seed(0)
D = torch.double
W = torch.rand(3, dtype=D)
X = torch.randn(2, 4, 3, dtype=D)


class Twice(torch.autograd.Function):
    """Its gradient is not linear in the cotangent, so that each sample's is to be seen."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return 5 * g + ctx.saved_tensors[0]


class Pair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x)
        return x * 2, (x * y).sum()

    @staticmethod
    def backward(ctx, g, h):
        (x,) = ctx.saved_tensors
        return 5 * g + x * h, h * x


def written(w, x):
    y = Twice.apply(w)
    y.mul_(x)
    return y


def viewed_before(w, x):
    y = Twice.apply(w)
    v, column = y[:2], y.view(3, 1)
    y.mul_(x)
    return v.sum() + column[:, 0]


def a_view_written(w, x):
    y = Twice.apply(w)
    v = y[:2]
    v.mul_(x[:2])
    return y


def items_set(w, x):
    y = Twice.apply(w)
    y[0] = x[1]
    y[1] = 7.0
    return y * x


def a_number(w, x):
    y, s = Pair.apply(w, w)
    s.mul_(x[0])
    y.add_(s)
    return y


def by_what_all_share(w, x):
    y = Twice.apply(w)
    y.mul_(2)
    return y + x


def detached_before(w, x):
    y = Twice.apply(w)
    z = y.detach()
    with torch.no_grad():
        y.mul_(x)
    return z + y


CASES = [
    written, viewed_before, a_view_written, items_set, a_number, by_what_all_share, detached_before,
    lambda w, x: Twice.apply(Twice.apply(w)) * x,
    lambda w, x: F.linear(x, Twice.apply(w)[None]) + Twice.apply(w).sum(),
    lambda w, x: (Twice.apply(w).stride(0) + int(Twice.apply(w).is_contiguous())) * x * w,
]  # fmt: skip


def loop(f):
    return lambda w, xs: torch.stack([f(w, x) for x in xs])


@pytest.mark.parametrize("f", CASES)
def test_against_the_loop(f):
    mapped = vmap(f, in_dims=(None, 0))
    nested, twice = vmap(mapped, in_dims=(None, 0)), loop(loop(f))
    sideways = lambda w, x: vmap(mapped, in_dims=(None, 1))(w, x.movedim(0, 1))  # noqa: E731
    for run, expected, x in (
        (mapped, loop(f), X[0]),
        (mapped, loop(f), X[0, :1]),
        (nested, twice, X),
        (sideways, twice, X),
    ):
        results = []
        for r in (run, expected):
            w = W.clone().requires_grad_()
            out = r(w, x)
            results.append((out, torch.autograd.grad(out.square().sum(), w)))
        torch.testing.assert_close(*results)
