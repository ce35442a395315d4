"""The backward operator of convolutions against the loop, and one call of it a layer."""

import pytest
import torch
import torch.nn.functional as F

from vmap_core.testing import check_rule

torch.manual_seed(0)
aten = torch.ops.aten
D = torch.double


def r(*shape):
    return torch.randn(*shape, dtype=D)


def conv(x, w, *options, transposed=False, groups=1):
    y = aten.convolution(x, w, None, *options[:3], transposed, options[3], groups)
    return (
        torch.randn_like(y),
        x,
        w,
        [w.shape[1] * groups if transposed else w.shape[0]],
        *options[:3],
        transposed,
        options[3],
        groups,
    )


CASES = {
    "convolution": (aten.convolution_backward, (*conv(r(2, 4, 5, 6), r(6, 2, 3, 2), [2, 1], [1, 0], [1, 2], [0, 0], groups=2), [True] * 3)),
    "convolution, no N of 2": (aten.convolution_backward, (*conv(r(1, 2, 7), r(3, 2, 3), [1], [0], [1], [0]), [True, True, False])),
    "convolution, weight only": (aten.convolution_backward, (*conv(r(2, 2, 7), r(3, 2, 3), [1], [0], [1], [0]), [False, True, False])),
    "convolution, input only": (aten.convolution_backward, (*conv(r(2, 2, 7), r(3, 2, 3), [1], [0], [1], [0]), [True, False, False])),
    "transposed": (aten.convolution_backward, (*conv(r(2, 4, 3, 3), r(4, 3, 2, 2), [2, 2], [0, 0], [1, 1], [1, 1], transposed=True, groups=2), [True] * 3)),
    "3d": (aten.convolution_backward, (*conv(r(2, 2, 3, 4, 3), r(2, 2, 2, 2, 2), [1] * 3, [0] * 3, [1] * 3, [0] * 3), [True] * 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, args = CASES[name]
    check_rule(op.default, *args)


def test_the_mapped_backward_pass_calls_the_kernel_once():
    """A Jacobian of a small network of layers with kernels of their own: no loop, one call a layer."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from vmap_autograd import jacrev
    from vmap_core import fallback_policy

    counts = {}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[func] = counts.get(func, 0) + 1
            return func(*args, **(kwargs or {}))

    w = r(3, 2, 3, 3)

    def f(x):
        return F.adaptive_avg_pool2d(
            F.gelu(F.max_pool2d(F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), w), 2)), 1
        ).flatten()

    x = r(2, 6, 6)
    expected = torch.autograd.functional.jacobian(f, x)
    with fallback_policy("error"):
        torch.testing.assert_close(jacrev(f)(x), expected)
        with Count():
            jacrev(f)(x)
    assert counts[aten.convolution_backward.default] == 1
