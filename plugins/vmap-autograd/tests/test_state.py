"""The transforms in every state that the caller may have put PyTorch in: the derivative is the same."""

import contextlib

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

import vmap_autograd as va
from vmap_core import vmap

X = torch.tensor([0.5, 0.25], dtype=torch.float64)
V = torch.tensor([1.0, -2.0], dtype=torch.float64)


def cubes(x):
    return (x**3).sum()


TRANSFORMS = {
    "grad": lambda x: va.grad(cubes)(x),
    "grad_and_value": lambda x: va.grad_and_value(cubes)(x)[0],
    "vjp": lambda x: va.vjp(torch.sin, x)[1](V)[0],
    "jvp": lambda x: va.jvp(torch.sin, (x,), (V,))[1],
    "linearize": lambda x: va.linearize(torch.sin, x)[1](V),
    "jacrev": lambda x: va.jacrev(torch.sin)(x),
    "jacfwd": lambda x: va.jacfwd(torch.sin)(x),
    "hessian": lambda x: va.hessian(cubes)(x),
    "jvp of grad": lambda x: va.jvp(va.grad(cubes), (x,), (V,))[1],
    "grad of jvp": lambda x: va.grad(lambda y: va.jvp(torch.sin, (y,), (V,))[1].sum())(x),
    "mapped grad": lambda x: vmap(va.grad(lambda y: y**3))(x),
    "mapped jvp": lambda x: vmap(lambda y: va.jvp(torch.sin, (y,), (torch.ones_like(y),))[1])(x),
    "mapped jacrev": lambda x: vmap(va.jacrev(torch.sin))(x[:, None]),
    "mapped torch.func.grad": lambda x: vmap(torch.func.grad(lambda y: y**3))(x),
    "mapped torch.func.vjp": lambda x: vmap(lambda y: torch.func.vjp(torch.sin, y)[1](torch.ones_like(y))[0])(x),
    "per_sample_grads": lambda x: va.per_sample_grads(lambda p, row: p * row, lambda out: out.sum() ** 2)(x, torch.stack([x, V])),
}  # fmt: skip


class InForward(torch.autograd.Function):
    """Takes a derivative where PyTorch records none."""

    @staticmethod
    def forward(ctx, x, f):
        return f(x)


def in_a_kernel(x, f):
    return InForward.apply(x.clone().requires_grad_(), f).detach()


def in_mode(mode):
    def run(x, f):
        with mode():
            return f(x)

    return run


def made_in_inference_mode(x, f):
    with torch.inference_mode():
        x = x.clone()
    return f(x)


STATES = {
    "no_grad": in_mode(torch.no_grad), "inference_mode": in_mode(torch.inference_mode),
    "enable_grad": in_mode(torch.enable_grad), "no forward mode": in_mode(lambda: forward_ad._set_fwd_grad_enabled(False)),
    "inference_mode, made there": lambda x, f: in_mode(torch.inference_mode)(x, lambda x: f(x.clone())),
    "a tensor made in inference mode": made_in_inference_mode, "a Function's forward": in_a_kernel,
    "autocast": in_mode(lambda: torch.autocast("cpu", enabled=False)), "nothing": in_mode(contextlib.nullcontext),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_derivative_is_the_same(transform, state):
    expected = transform(X)
    values = expected if isinstance(expected, torch.Tensor) else torch.cat(list(expected))
    assert values.abs().sum() > 0.1
    got = state(X, transform)
    torch.testing.assert_close(got, expected)


def test_grad_mode_outside_is_as_before():
    with torch.inference_mode():
        va.grad(cubes)(X)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    with torch.no_grad():
        out = va.jacrev(torch.sin)(X.clone().requires_grad_())
        assert not torch.is_grad_enabled() and not out.requires_grad
