"""Every patch of this pack is reached: a public call inside a mapped function runs what it puts there."""

import pytest
import torch

import vmap_core
from vmap_autograd import checkpoint, functional, torch_func
from vmap_core import vmap

X = torch.arange(6.0).reshape(2, 3)


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
}
PATCHES = [checkpoint.recompute_at_levels, functional.choose_vmap, *torch_func.PATCHES]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: p.target)
def test_reached(patch, counted):
    assert patch in vmap_core.patches()
    with counted(patch) as calls:
        vmap(CALLS[patch.target])(X)
    assert calls
