"""cuDNN's convolutions: a mapped input, mapped filters, and what is added to them."""

import pytest
import torch
from cuda_case import Case
from cuda_checks import checks_of

aten = torch.ops.aten


FLAGS = (False, True, False)
CASES = {
    "cudnn_convolution": Case(
        lambda x, w: aten.cudnn_convolution.default(x, w, [1, 0], [2, 1], [1, 1], 1, *FLAGS),
        lambda t: [t(2, 3, 5, 4), t(4, 3, 3, 2)], (aten.cudnn_convolution.default,), shapes=False,
    ),
    "cudnn_convolution, groups": Case(
        lambda x, w: aten.cudnn_convolution.default(x, w, [0], [1], [2], 2, *FLAGS),
        lambda t: [t(2, 4, 6), t(4, 2, 3)], (aten.cudnn_convolution.default,), shapes=False, on_gpu=False,
    ),
    "cudnn_convolution_transpose": Case(
        lambda x, w: aten.cudnn_convolution_transpose.default(x, w, [1, 0], [1, 0], [2, 1], [1, 1], 2, *FLAGS),
        lambda t: [t(2, 4, 3, 4), t(4, 3, 3, 2)], (aten.cudnn_convolution_transpose.default,), shapes=False,
    ),
    "cudnn_convolution_relu": Case(
        lambda x, w, b: aten.cudnn_convolution_relu.default(x, w, b, [1, 1], [1, 1], [1, 1], 1),
        lambda t: [t(2, 3, 4, 4), t(4, 3, 3, 3), t(4)], (aten.cudnn_convolution_relu.default,),
        gradients=False, shapes=False,
    ),
    "cudnn_convolution_add_relu": Case(
        lambda x, w, z, b: aten.cudnn_convolution_add_relu.default(x, w, z, 0.5, b, [1, 1], [1, 1], [1, 1], 1),
        lambda t: [t(2, 3, 4, 4), t(4, 3, 3, 3), t(2, 4, 4, 4), t(4)], (aten.cudnn_convolution_add_relu.default,),
        gradients=False, shapes=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("check", "case"), checks_of(CASES))
def test_operators(check, case):
    check(case)
