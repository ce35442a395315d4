"""Captured programs of functions that differentiate inside."""

import warnings

import pytest
import torch
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

import vmap_core
from vmap_autograd import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, per_sample_grads, vjp
from vmap_core import CaptureError, capture, vmap

W = torch.randn(3, 3)


def check(mapped, make, calls=2):
    """Compare a program with the function, on values it was not captured with."""
    program = capture(mapped, *make())
    for _ in range(calls):
        args = make()
        torch.testing.assert_close(program(*args), mapped(*args))
    targets = [n.target for n in program.graph_module.graph.nodes]
    assert torch.autograd.grad not in targets
    return program


def rows():
    return (torch.randn(4, 3),)


def loss(w, b, x, y):
    return (torch.tanh(F.linear(x, w, b)).exp().softmax(-1) - y).square().sum()


def gradient_arguments():
    return torch.randn(3, 3), torch.randn(3), torch.randn(4, 3), torch.randn(4, 3)


def test_per_sample_gradients():
    mapped = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))
    program = check(mapped, gradient_arguments)
    args = gradient_arguments()
    expected = [torch.func.grad(loss, (0, 1))(*args[:2], x, y) for x, y in zip(*args[2:], strict=True)]
    torch.testing.assert_close(program(*args), tuple(map(torch.stack, zip(*expected, strict=True))))
    check(vmap(grad_and_value(loss), in_dims=(None, None, 0, 0)), gradient_arguments)


def test_gradients_of_per_sample_gradients():
    """The weight requires grad outside too: the program's result can be differentiated, as the function's."""
    mapped = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))

    def make():
        w, *rest = gradient_arguments()
        return w.requires_grad_(), *rest

    program = capture(mapped, *make())
    args = make()

    def outer(f):
        return torch.autograd.grad(sum(g.sin().sum() for g in f(*args)), args[0])

    torch.testing.assert_close(outer(program), outer(mapped))


def _leaf(x):
    w = W.detach().requires_grad_()
    return torch.autograd.grad((w @ x).sin().exp().sum(), w)[0]


def _backward(x):
    w = W.detach().requires_grad_()
    (w @ x).sin().sum().backward()
    return w.grad


def _no_graph(x):
    y = x.detach().requires_grad_()
    return torch.autograd.grad(y.pow(3).sum(), y)[0] * x


def _double(x):
    y = x.detach().requires_grad_()
    (first,) = torch.autograd.grad(y.sigmoid().prod(), y, create_graph=True)
    return torch.autograd.grad(first.sum(), y)[0]


@pytest.mark.parametrize("function", [_leaf, _backward, _no_graph, _double])
def test_the_plain_api(function):
    check(vmap(function), rows)


def test_what_has_no_graph_stays_without():
    x = torch.randn(4, 3, requires_grad=True)
    program = capture(vmap(_no_graph), x)
    (got,) = torch.autograd.grad(program(x).sum(), x)
    (expected,) = torch.autograd.grad(vmap(_no_graph)(x).sum(), x)
    torch.testing.assert_close(got, expected)


def test_rows_of_a_jacobian():
    def function(v):
        x = W[0].detach().requires_grad_()
        return torch.autograd.grad(x.pow(2) * x.exp().sum(), x, v)[0]

    check(vmap(function), lambda: (torch.randn(4, 3),))
    x = torch.randn(3, requires_grad=True)
    y = x.pow(2) * x.sum()
    check(vmap(lambda v: torch.autograd.grad(y, x, v, retain_graph=True)[0]), rows)


def test_a_leaf_from_outside():
    w = torch.randn(3, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one vector per sample
        check(vmap(lambda x: torch.autograd.grad((w * x).sin().sum(), w)[0]), rows)


def curve(x):
    return torch.tanh(W @ x) * x.sum().sin()


@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_jacobians(transform):
    check(vmap(transform(curve)), rows)
    check(transform(curve), lambda: (torch.randn(3),))


def test_hessians():
    check(vmap(hessian(lambda x: curve(x).sum())), rows)


def test_tangents():
    check(vmap(lambda x, t: jvp(curve, (x,), (t,))), lambda: (torch.randn(4, 3), torch.randn(4, 3)))

    def write(x):
        out = torch.zeros(3)
        out[1:] = x[1:]
        return out.mul_(x).clamp_(min=0.1)

    check(vmap(lambda x, t: jvp(write, (x,), (t,))), lambda: (torch.randn(4, 3), torch.randn(4, 3)))


def test_vjp():
    check(vmap(lambda x, v: vjp(curve, x)[1](v)), lambda: (torch.randn(4, 3), torch.randn(4, 3)))


def test_modules():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def make():
        return torch.randn(5, 3), torch.randn(5, 1)

    function = per_sample_grads(model, F.mse_loss)
    program = check(function, make)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    args = make()
    torch.testing.assert_close(program(*args), function(*args))
    compiled = vmap_core.compile(function)
    for _ in range(3):
        torch.testing.assert_close(compiled(*args), function(*args))
    assert compiled.cache_info().hits == 2


def test_ensemble():
    models = [torch.nn.Linear(3, 2) for _ in range(4)]
    params, _ = stack_module_state(models)
    mapped = vmap(lambda p, x: functional_call(models[0], p, (x,)).relu(), in_dims=(0, None))
    program = capture(mapped, params, torch.randn(7, 3))
    x = torch.randn(7, 3)
    got, expected = program(params, x), torch.stack([m(x).relu() for m in models])
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), list(params.values())),
        torch.autograd.grad(mapped(params, x).sum(), list(params.values())),
    )


class Cube(torch.autograd.Function):
    """Its backward is not its derivative, so that one can tell which has run."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 7 * g * x


def test_functions_with_gradients_inside():
    check(vmap(grad(lambda x: Cube.apply(x.sin()).sum())), rows)
    check(vmap(Cube.apply), rows)


def test_functions_with_gradients_from_outside():
    w = torch.randn(3, requires_grad=True)
    with pytest.raises(CaptureError, match="autograd.Function Cube"):
        capture(vmap(lambda x: Cube.apply(w * x)), *rows())
    (x,) = rows()
    program = capture(lambda x: Cube.apply(w) * vmap(torch.sin)(x), x)  # outside a map it is recorded as it is
    (got,) = torch.autograd.grad(program(x).sum(), w)
    torch.testing.assert_close(got, 7 * w * x.sin().sum(0))


def test_accumulation_into_a_tensor_from_outside():
    w = torch.ones(3, requires_grad=True)

    def function(x):
        (w * x).sum().backward(inputs=[w])
        return x

    with pytest.raises(CaptureError, match="accumulates"):
        capture(vmap(function), *rows())


def test_backend():
    mapped = vmap(grad(loss), in_dims=(None, None, 0, 0))
    compiled = vmap_core.compile(mapped, "aot_eager")
    for _ in range(2):
        args = gradient_arguments()
        torch.testing.assert_close(compiled(*args), mapped(*args))


C = torch.ones(3)


@pytest.mark.parametrize(
    ("mapped", "make"),
    [
        (  # primal and tangent of other strides: PyTorch copies the tangent
            vmap(lambda x, t: jvp(torch.tanh, (x,), (t,))[1], in_dims=(1, 0)),
            lambda: (torch.randn(2, 4), torch.randn(4, 2)),
        ),
        (vmap(lambda x: jvp(torch.sin, (W[0][:2],), (x[::2],))[1]), lambda: (torch.randn(3, 4),)),
        (vmap(lambda x: jvp(torch.sin, (x,), (C,))[1]), lambda: (torch.randn(2, 3),)),
        (vmap(lambda x: jvp(torch.sin, (x.T,), (x @ x,))[1]), lambda: (torch.randn(2, 3, 3),)),
        (vmap(lambda x: jvp(lambda y: jvp(torch.sin, (y.T,), (x,))[1], (x,), (x @ x,))[1]), lambda: (torch.randn(2, 3, 3),)),
    ],
)  # fmt: skip
def test_tangents_are_those_of_the_call(mapped, make):
    """Also where forward mode copies them to the primal's strides, below the program's own calls."""
    program = check(mapped, make)
    args = make()
    with torch.no_grad():
        C.mul_(3)
    torch.testing.assert_close(program(*args), mapped(*args))
