"""Backward operators that go element by element, against the loop."""

import pytest
import torch
import torch.nn.functional as F

from vmap_core.testing import check_rule

torch.manual_seed(0)
aten = torch.ops.aten
D = torch.double


def r(*shape):
    return torch.randn(*shape, dtype=D)


def glu_backward_jvp(grad, x, dgrad, dx):
    return aten.glu_backward_jvp(aten.glu_backward(grad, x, 0), grad, x, dgrad, dx, 0)


CASES = {
    "hardshrink": (aten.hardshrink_backward, (r(4, 3), r(4, 3), 0.5)),
    "softshrink": (aten.softshrink_backward, (r(4, 3), r(4, 3), 0.5)),
    "gelu": (aten.gelu_backward, (r(4, 3), r(4, 3))),
    "hardshrink, broadcast": (aten.hardshrink_backward, (r(4, 3), r(3), 0.5)),
    "gelu, tanh": (lambda g, x: aten.gelu_backward(g, x, approximate="tanh"), (r(4, 3), r(4, 3))),
    "gelu of a scalar": (aten.gelu_backward, (r(1)[0], r(1)[0])),
    "glu_jvp": (lambda x, dx: aten.glu_jvp(F.glu(x), x, dx, -1), (r(4, 6), r(4, 6))),
    "glu_backward_jvp": (glu_backward_jvp, (r(3, 3), r(6, 3), r(3, 3), r(6, 3))),
    "masked_scatter": (aten.masked_scatter_backward, (r(4, 3), r(4, 3) > 0, [12])),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, args = CASES[name]
    check_rule(getattr(op, "default", op), *args)
