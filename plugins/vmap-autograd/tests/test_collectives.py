"""Collectives with gradients, which are autograd Functions in Python."""

import pytest
import torch
import torch.distributed as dist

from vmap_core import vmap

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this PyTorch has no gloo"
)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["all_reduce", "all_gather", "broadcast"])
def test_gradients_equal_the_loop(name):
    from torch.distributed.nn import functional

    def f(x):
        y = getattr(functional, name)(x * 2, **({"src": 0} if name == "broadcast" else {}))
        return (y[0] if name == "all_gather" else y).sin()

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        grads = []
        for mapped in (vmap(f), lambda x: torch.stack([f(row) for row in x])):
            x = torch.arange(6.0).reshape(2, 3).requires_grad_()
            mapped(x).sum().backward()
            grads.append(x.grad)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(*grads)
