"""cuDNN's sampling of images at points of a grid."""

import pytest
import torch
from cuda_case import Case
from cuda_checks import checks_of

aten = torch.ops.aten


CASES = {
    "cudnn_affine_grid_generator": Case(
        lambda x: aten.cudnn_affine_grid_generator.default(x, 2, 3, 4, 5), lambda t: [t(2, 2, 3)],
        (aten.cudnn_affine_grid_generator.default,), shapes=False,
    ),
    "cudnn_affine_grid_generator_backward": Case(
        lambda x: aten.cudnn_affine_grid_generator_backward.default(x, 2, 3, 4, 5), lambda t: [t(2, 4, 5, 2)],
        (aten.cudnn_affine_grid_generator_backward.default,), gradients=False, shapes=False,
    ),
    "cudnn_grid_sampler": Case(
        aten.cudnn_grid_sampler.default, lambda t: [t(2, 3, 4, 5), t(2, 3, 3, 2)], (aten.cudnn_grid_sampler.default,),
        shapes=False,
    ),
    "cudnn_grid_sampler_backward": Case(
        aten.cudnn_grid_sampler_backward.default, lambda t: [t(2, 3, 4, 5), t(2, 3, 3, 2), t(2, 3, 3, 3)],
        (aten.cudnn_grid_sampler_backward.default,), gradients=False, shapes=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("check", "case"), checks_of(CASES))
def test_operators(check, case):
    check(case)
