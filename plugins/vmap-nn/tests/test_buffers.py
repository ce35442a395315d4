"""Statistics of each sample's own."""

import copy

import pytest
import torch
from torch import nn

from vmap_core import InplaceError, fallback_policy, vmap
from vmap_nn import call_with_buffers


@pytest.fixture(autouse=True)
def no_loop():
    with fallback_policy("error"):
        yield


NORMS = {
    "batch": lambda: nn.BatchNorm1d(4),
    "average": lambda: nn.BatchNorm1d(4, momentum=None),
    "instance": lambda: nn.InstanceNorm1d(4, track_running_stats=True, affine=True),
    "nested": lambda: nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)),
}


@pytest.mark.parametrize("name", NORMS)
def test_statistics_are_returned(name):
    module = NORMS[name]()
    for buffer in module.buffers():
        buffer.add_(1)
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(3, 5, 4, 6, requires_grad=True)
    out, buffers = vmap(lambda x: call_with_buffers(module, x))(x)
    torch.testing.assert_close(module.state_dict(), before)
    copies = [copy.deepcopy(module) for _ in range(3)]
    expected = torch.stack([m(row) for m, row in zip(copies, x, strict=True)])
    torch.testing.assert_close(out, expected)
    assert buffers.keys() == dict(module.named_buffers()).keys()
    for key, value in buffers.items():
        torch.testing.assert_close(value, torch.stack([dict(m.named_buffers())[key] for m in copies]))
    weights = torch.randn_like(out)
    (got,) = torch.autograd.grad((out * weights).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_unmapped_and_nested():
    module = nn.BatchNorm1d(4)
    x = torch.randn(2, 3, 5, 4)
    out, buffers = call_with_buffers(module, x[0, 0])
    torch.testing.assert_close(buffers["running_mean"], 0.1 * x[0, 0].mean(0))
    assert module.num_batches_tracked == 0
    both, nested = vmap(vmap(lambda x: call_with_buffers(module, x)))(x)
    torch.testing.assert_close(both[0, 0], out)
    torch.testing.assert_close(nested["running_var"][0, 0], buffers["running_var"])


def test_the_error_names_it():
    with pytest.raises(InplaceError, match="call_with_buffers"):
        vmap(nn.BatchNorm1d(4))(torch.randn(3, 5, 4))
