"""Backward operators on images against the loop: each argument batched or not, at any place, nested, empty.

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
CASES = {
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
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, args = CASES[name]
    check_rule(op.default, *args)
