"""Every patch of this pack is reached: a public call inside a mapped function runs what it puts there."""

import pytest
import torch

import vmap_core
from vmap_autograd import checkpoint, edges, functional, torch_func
from vmap_core import vmap

X = torch.arange(6.0).reshape(2, 3)
LAYER = torch.nn.Linear(3, 2)


def value(x):
    return x.sin().sum()


FUNC = "torch._functorch.eager_transforms"
CALLS = {
    f"{FUNC}.grad_impl": lambda x: torch.func.grad(value)(x),
    f"{FUNC}.grad_and_value_impl": lambda x: torch.func.grad_and_value(value)(x),
    f"{FUNC}._vjp_with_argnums": lambda x: torch.func.vjp(torch.sin, x)[1](x)[0],
    f"{FUNC}._jvp_with_argnums": lambda x: torch.func.jvp(torch.sin, (x,), (x,)),
    f"{FUNC}.linearize": lambda x: torch.func.linearize(torch.sin, x)[1](x),
    functional.choose_vmap.target: lambda x: torch.autograd.functional.jacobian(
        torch.sin, x, vectorize=True, strategy="forward-mode"
    ),
    checkpoint.recompute_at_levels.target: lambda x: torch.utils.checkpoint.checkpoint(
        torch.sin, x, use_reentrant=False
    ),
    edges.find_node.target: lambda x: torch.autograd.graph.get_gradient_edge(x.requires_grad_()).node.name() and x,
    checkpoint.tell_the_level.target: lambda x: torch.func.functional_call(
        LAYER, {"weight": torch.zeros(2, 3) + x.sum()}, x
    ),
}
PATCHES = [
    checkpoint.recompute_at_levels,
    checkpoint.tell_the_level,
    edges.find_node,
    functional.choose_vmap,
    *torch_func.PATCHES,
]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: p.target)
def test_reached(patch, counted):
    assert patch in vmap_core.patches()
    with counted(patch) as calls:
        vmap(CALLS[patch.target])(X)
    assert calls


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 7 * ctx.saved_tensors[0] * grad  # to be told from what autograd would find itself


APPLY = Cube.apply
"""Kept outside, as PyTorch's documentation does it."""


def test_a_bound_apply_that_was_kept_outside_is_served_inside():
    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(APPLY(x).sum(), x)[0]

    assert torch.equal(vmap(gradient)(X), 7 * X)
    assert torch.equal(vmap(APPLY)(X), X**3)
