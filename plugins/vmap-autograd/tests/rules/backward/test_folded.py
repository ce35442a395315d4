"""Rules of backward operators against the loop: each argument batched or not, at any place, nested, empty.

What a mapped backward pass meets is swept over OpInfo (mode "vectors"); here the saved tensors are batched too.
"""

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


def pool(function, x, *args, **kwargs):
    y, i = function(x, *args, return_indices=True, **kwargs)
    return torch.randn_like(y), x, i


def fractional(n):
    x = r(2, 2, *(6,) * n)
    sample = torch.rand(2, 2, n, dtype=D)
    y, i = getattr(aten, f"fractional_max_pool{n}d")(x, [2] * n, [3] * n, sample)
    return torch.randn_like(y), x, [2] * n, [3] * n, i


x2, x3 = r(2, 3, 6, 5), r(2, 2, 4, 4, 5)
max2, max3 = pool(F.max_pool2d, x2, 2), pool(F.max_pool3d, x3, 2)
PAIRS = r(4, 3), r(5, 3)
POINTS = r(5, 3)

CASES = {
    "convolution": (aten.convolution_backward, (*conv(r(2, 4, 5, 6), r(6, 2, 3, 2), [2, 1], [1, 0], [1, 2], [0, 0], groups=2), [True] * 3)),
    "convolution, no N of 2": (aten.convolution_backward, (*conv(r(1, 2, 7), r(3, 2, 3), [1], [0], [1], [0]), [True, True, False])),
    "convolution, weight only": (aten.convolution_backward, (*conv(r(2, 2, 7), r(3, 2, 3), [1], [0], [1], [0]), [False, True, False])),
    "convolution, input only": (aten.convolution_backward, (*conv(r(2, 2, 7), r(3, 2, 3), [1], [0], [1], [0]), [True, False, False])),
    "transposed": (aten.convolution_backward, (*conv(r(2, 4, 3, 3), r(4, 3, 2, 2), [2, 2], [0, 0], [1, 1], [1, 1], transposed=True, groups=2), [True] * 3)),
    "3d": (aten.convolution_backward, (*conv(r(2, 2, 3, 4, 3), r(2, 2, 2, 2, 2), [1] * 3, [0] * 3, [1] * 3, [0] * 3), [True] * 3)),
    "adaptive_avg_pool2d": (aten._adaptive_avg_pool2d_backward, (r(2, 3, 3, 2), x2)),
    "adaptive_avg_pool2d, no N": (aten._adaptive_avg_pool2d_backward, (r(3, 3, 2), x2[0])),
    "adaptive_avg_pool3d": (aten._adaptive_avg_pool3d_backward, (r(2, 2, 2, 2, 2), x3)),
    "adaptive_max_pool2d": (aten.adaptive_max_pool2d_backward, pool(F.adaptive_max_pool2d, x2, (3, 2))),
    "adaptive_max_pool3d": (aten.adaptive_max_pool3d_backward, pool(F.adaptive_max_pool3d, x3, (2, 3, 2))),
    "avg_pool2d": (aten.avg_pool2d_backward, (r(2, 3, 3, 2), x2, [2, 2], [2, 2], [0, 0], False, True, None)),
    "avg_pool2d, no N": (aten.avg_pool2d_backward, (r(3, 3, 2), x2[0], [2, 2], [2, 2], [0, 0], False, True, None)),
    "avg_pool3d": (aten.avg_pool3d_backward, (r(2, 2, 2, 2, 2), x3, [2] * 3, [2] * 3, [0] * 3, False, True, None)),
    "max_pool2d": (aten.max_pool2d_with_indices_backward, (*max2[:2], [2, 2], [2, 2], [0, 0], [1, 1], False, max2[2])),
    "max_pool3d": (aten.max_pool3d_with_indices_backward, (*max3[:2], [2] * 3, [2] * 3, [0] * 3, [1] * 3, False, max3[2])),
    "fractional_max_pool2d": (aten.fractional_max_pool2d_backward, fractional(2)),
    "fractional_max_pool3d": (aten.fractional_max_pool3d_backward, fractional(3)),
    "reflection_pad1d": (aten.reflection_pad1d_backward, (r(2, 3, 8), r(2, 3, 5), [2, 1])),
    "reflection_pad2d, no N": (aten.reflection_pad2d_backward, (r(3, 7, 8), r(3, 6, 5), [2, 1, 0, 1])),
    "replication_pad3d": (aten.replication_pad3d_backward, (r(2, 2, 5, 4, 6), x3, [1, 0, 0, 0, 1, 0])),
    "grid_sampler_2d": (aten.grid_sampler_2d_backward, (r(2, 3, 2, 2), x2, r(2, 2, 2, 2).tanh(), 0, 0, False, [True, True])),
    "grid_sampler_3d": (aten.grid_sampler_3d_backward, (r(2, 2, 2, 2, 1), x3, r(2, 2, 2, 1, 3).tanh(), 0, 0, False, [True, True])),
    "upsample_bilinear2d": (aten.upsample_bilinear2d_backward, (r(2, 3, 4, 6), [4, 6], [2, 3, 2, 3], False, None, None)),
    "upsample_nearest1d": (aten.upsample_nearest1d_backward, (r(2, 3, 6), [6], [2, 3, 3], None)),
    "upsample_trilinear3d": (aten.upsample_trilinear3d_backward, (r(1, 2, 4, 4, 4), [4] * 3, [1, 2, 2, 2, 2], False, None, None, None)),
    "upsample_bilinear2d_aa": (aten._upsample_bilinear2d_aa_backward, (r(2, 3, 4, 6), [4, 6], [2, 3, 2, 3], False, None, None)),
    "hardshrink": (aten.hardshrink_backward, (r(4, 3), r(4, 3), 0.5)),
    "softshrink": (aten.softshrink_backward, (r(4, 3), r(4, 3), 0.5)),
    "gelu": (aten.gelu_backward, (r(4, 3), r(4, 3))),
    "masked_scatter": (aten.masked_scatter_backward, (r(4, 3), r(4, 3) > 0, [12])),
    **{
        f"cdist, p={p}": (aten._cdist_backward, (r(4, 5), *PAIRS, p, torch.cdist(*PAIRS, p=p)))
        for p in (0.0, 1.0, 2.0, 3.0, float("inf"))
    },
    **{
        f"pdist, p={p}": (aten._pdist_backward, (r(10), POINTS, p, F.pdist(POINTS, p)))
        for p in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf"))
    },
    **{
        f"multi_margin_loss, reduction {k}": (
            aten.multi_margin_loss_backward,
            (r(4) if k == 0 else r(()), r(4, 5), torch.randint(5, (4,)), 1, 1.0, None, k),
        )
        for k in (0, 1, 2)
    },
    "multilabel_margin_loss": (
        aten.multilabel_margin_loss_backward,
        (r(()), r(2, 4), torch.tensor([[3, 0, -1, 1], [2, -1, 1, 0]]), 1, torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]], dtype=D)),
    ),
}  # fmt: skip


# PyTorch has no derivative of these.
NOT_DIFFERENTIABLE = (
    aten._cdist_backward,
    aten._pdist_backward,
    aten.multi_margin_loss_backward,
    aten.multilabel_margin_loss_backward,
)


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, args = CASES[name]
    check_rule(op.default, *args, gradients=op not in NOT_DIFFERENTIABLE)


def test_ctc():
    log_probs = r(6, 2, 5).log_softmax(-1)
    targets, lengths = torch.randint(1, 5, (2, 3)), ([6, 5], [3, 2])
    loss, alpha = aten._ctc_loss(log_probs, targets, *lengths, 0, False)
    check_rule(
        aten._ctc_loss_backward.default, r(2), log_probs, targets, *lengths, loss, alpha, 0, True, gradients=False
    )


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
