"""No cycle keeps the inputs of a transform, nor what its functions hold."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.freed import left_alive
from vmap_autograd import grad, hessian, jacfwd, jacrev, jvp, linearize, per_sample_grads, vjp
from vmap_core import capture, compile, vmap


def cubes(x):
    return (x**3).sum()


def inside(x):
    x = x.detach().requires_grad_()
    x.register_hook(lambda g: g * 2)
    return torch.autograd.grad(cubes(x), x, create_graph=True)[0].detach()


def backward_inside(x):
    x = x.detach().requires_grad_()
    cubes(x).backward()
    return x.grad


class Square(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g

    @staticmethod
    def jvp(ctx, t):
        return t


def outside(function):
    def run(x):
        x.requires_grad_()
        vmap(function)(x).sum().backward()
        return x.grad

    return run


layer = nn.Linear(3, 2)
parameters = dict(layer.named_parameters())


def by_torch_func(x):
    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).sum()

    return vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)


USES = {
    "grad": vmap(grad(cubes)),
    "grad of grad": vmap(grad(lambda x: grad(cubes)(x).sum())),
    "vjp": vmap(lambda x: vjp(torch.sin, x)[1](x)),
    "jvp": vmap(lambda x: jvp(torch.sin, (x,), (x,))[1]),
    "linearize": lambda x: linearize(torch.sin, x)[1](x),
    "jacrev": jacrev(torch.sin),
    "jacfwd": jacfwd(torch.sin),
    "hessian": hessian(cubes),
    "mapped jacrev": vmap(jacrev(torch.sin)),
    "mapped jacfwd": vmap(jacfwd(torch.sin)),
    "mapped hessian": vmap(hessian(cubes)),
    "jacrev of a mapped function": jacrev(vmap(torch.sin)),
    "jacfwd of a mapped function": jacfwd(vmap(torch.sin)),
    "torch.func.grad": vmap(torch.func.grad(cubes)),
    "torch.func.jvp": vmap(lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1]),
    "torch.func.jacrev": vmap(torch.func.jacrev(torch.sin)),
    "autograd.functional": lambda x: torch.autograd.functional.hessian(cubes, x, vectorize=True),
    "per-sample gradients": lambda x: per_sample_grads(layer, nn.functional.mse_loss)(x, torch.zeros(4, 2)),
    "per-sample gradients by torch.func": by_torch_func,
    "autograd.grad inside": vmap(inside),
    "backward inside": vmap(backward_inside),
    "a Function": outside(Square.apply),
    "a Function inside": vmap(grad(lambda x: Square.apply(x).sum())),
    "a Function, forward mode": vmap(lambda x: jvp(Square.apply, (x,), (x,))[1]),
    "a checkpoint": outside(lambda x: checkpoint(torch.sin, x, use_reentrant=False)),
    "lowered": outside(lambda x: torch.cdist(x[None], x[None] + 1)),
    "capture": lambda x: capture(vmap(grad(cubes)), x)(x),
    "compile": lambda x: compile(vmap(grad(cubes)))(x),
}


@pytest.mark.parametrize("name", USES)
def test_inputs_go_without_a_collection(name):
    USES[name](torch.randn(4, 3))  # what PyTorch imports on a first use may hold the frames it is imported in
    assert left_alive(USES[name]) == 0


@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd, hessian])
def test_functions_go_with_what_they_hold(transform):
    refs = []
    for _ in range(3):
        held = torch.ones(3)
        refs.append(weakref.ref(held))
        vmap(transform(lambda x, held=held: (x**2 * held).sum()))(torch.ones(4, 3))
        transform(vmap(lambda x, held=held: (x**2 * held).sum(), out_dims=0) if transform is jacrev else cubes)(
            torch.ones(2, 3)
        )
        del held
    gc.collect()
    assert sum(ref() is not None for ref in refs) == 0
