"""Gradients of distances against the loop. PyTorch has no derivative of them."""

import pytest
import torch
import torch.nn.functional as F

from vmap_core.testing import check_rule

torch.manual_seed(0)
aten = torch.ops.aten
D = torch.double


def r(*shape):
    return torch.randn(*shape, dtype=D)


PAIRS = r(4, 3), r(5, 3)
POINTS = r(5, 3)

CASES = {
    **{
        f"cdist, p={p}": (aten._cdist_backward, (r(4, 5), *PAIRS, p, torch.cdist(*PAIRS, p=p)))
        for p in (0.0, 1.0, 2.0, 3.0, float("inf"))
    },
    **{
        f"pdist, p={p}": (aten._pdist_backward, (r(10), POINTS, p, F.pdist(POINTS, p)))
        for p in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf"))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, args = CASES[name]
    check_rule(op.default, *args, gradients=False)
