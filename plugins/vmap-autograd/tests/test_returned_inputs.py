"""autograd.Functions that return their input as it is, and save it."""

import pytest
import torch
from torch.autograd import Function

from vmap_core import vmap

torch.manual_seed(0)
X = torch.randn(4, 3, dtype=torch.double)
W = torch.randn(3, dtype=torch.double)


class Returned(Function):
    """Old style: returns its input as it is, and saves it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0] * 3


class ReturnedAmongOthers(Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(x, y)
        return y, x

    @staticmethod
    def backward(ctx, g, h):
        x, y = ctx.saved_tensors
        return 2 * g * y + h * x


@pytest.mark.filterwarnings("error::vmap_core.FallbackWarning")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("cls", [Returned, ReturnedAmongOthers])
def test_an_input_that_is_returned_and_saved(cls, shared):
    def f(x):
        leaf = (W if shared else x).detach().clone().requires_grad_()
        out = cls.apply(leaf)
        total = sum((o.sin() * x).sum() for o in (out if isinstance(out, tuple) else (out,)))
        (g,) = torch.autograd.grad(total, leaf, create_graph=True)
        return torch.stack([g.detach(), torch.autograd.grad(g.square().sum(), leaf)[0]])

    expected = torch.stack([f(x) for x in X])
    torch.testing.assert_close(vmap(f)(X), expected)
    torch.testing.assert_close(vmap(f)(X[:1]), expected[:1])
    torch.testing.assert_close(vmap(f, in_dims=1)(X.T.contiguous()), expected)
    torch.testing.assert_close(vmap(vmap(f))(X[None]), expected[None])


@pytest.mark.parametrize("cls", [Returned, ReturnedAmongOthers])
def test_a_shared_input_that_is_returned_and_saved(cls):
    results = []
    for run in (vmap, lambda f: lambda xs: torch.stack([f(x) for x in xs])):
        x, w = X.clone().requires_grad_(), W.clone().requires_grad_()

        def f(r, w=w):
            out = cls.apply(w * 1)
            return (out[1] * out[0] if isinstance(out, tuple) else out) * r

        results.append(torch.autograd.grad(run(f)(x).sin().sum(), (x, w)))
    torch.testing.assert_close(*results)


def test_a_new_style_function_may_not_save_the_input_that_it_returns():
    class New(Function):
        forward = staticmethod(lambda x: x)
        setup_context = staticmethod(lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]))
        backward = staticmethod(lambda ctx, g: g)

    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="returned as-is as output is being saved"):
        New.apply(x[0])
    with pytest.raises(RuntimeError, match="returned as-is as output is being saved"):
        vmap(New.apply)(x)
