"""torch.func's transforms outside our vmap: they see the physical operations, also those of the dispatcher's door."""

import pytest
import torch
import torch.nn.functional as F

from vmap_core import vmap

FUNCTIONS = {
    "covariance": lambda x: torch.cov(x).sum(),
    "max_pool": lambda x: F.max_pool1d(x, 2).sum(),
    "rms_norm": lambda x: F.rms_norm(x, (5,)).pow(3).sum(),
    "cummax": lambda x: x.cummax(0)[0].pow(2).sum(),
    "tensordot": lambda x: torch.tensordot(x, x, ([0], [0])).sin().sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_grad_outside(name):
    f = FUNCTIONS[name]
    x = torch.randn(3, 4, 5, dtype=torch.double)
    ours = torch.func.grad(lambda x: vmap(f)(x).sum())(x)
    torch.testing.assert_close(ours, torch.stack([torch.func.grad(f)(row) for row in x]))


@pytest.mark.parametrize("name", ["covariance", "cummax", "tensordot"])
def test_jvp_and_second_gradients_outside(name):
    f = FUNCTIONS[name]
    x, t = torch.randn(3, 4, 5, dtype=torch.double), torch.randn(3, 4, 5, dtype=torch.double)
    ours = torch.func.jvp(vmap(f), (x,), (t,))[1]
    torch.testing.assert_close(ours, torch.stack([torch.func.jvp(f, (a,), (b,))[1] for a, b in zip(x, t, strict=True)]))
    ours = torch.func.grad(lambda x: torch.func.grad(lambda x: vmap(f)(x).sum())(x).square().sum())(x)
    rows = [torch.func.grad(lambda x: torch.func.grad(f)(x).square().sum())(row) for row in x]
    torch.testing.assert_close(ours, torch.stack(rows))


def test_vmap_of_torch_func_outside():
    x = torch.randn(3, 4, 5, dtype=torch.double)
    ours = torch.func.vmap(lambda s: vmap(lambda row: row * s)(x))(torch.arange(2.0, dtype=torch.double))
    torch.testing.assert_close(ours, torch.stack([x * 0, x]))
