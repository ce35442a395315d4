"""Dropout kernels that return their mask, and their gradients."""

import pytest
import torch
from cuda_case import Case
from cuda_checks import checks_of, dropout_checks_of

aten = torch.ops.aten


CASES = {
    "_masked_scale": Case(
        lambda x, m: aten._masked_scale.default(x, m.to(torch.uint8), 2.0), lambda t: [t(3, 4), t(3, 4) > 0],
        (aten._masked_scale.default,), gradients=False,
    ),
    "native_dropout_backward": Case(
        lambda x, m: aten.native_dropout_backward.default(x, m, 2.0), lambda t: [t(3, 4), t(3, 4) > 0],
        (aten.native_dropout_backward.default,),
    ),
}  # fmt: skip

DROPOUT = {
    "fused": Case(lambda x: aten._fused_dropout.default(x, 0.5), lambda t: [t(3, 4)], (aten._fused_dropout.default,)),
    "native": Case(lambda x: aten.native_dropout.default(x, 0.5, True), lambda t: [t(3, 4)], (aten.native_dropout.default,)),
}  # fmt: skip


@pytest.mark.parametrize(("check", "case"), checks_of(CASES))
def test_operators(check, case):
    check(case)


@pytest.mark.parametrize(("check", "case"), dropout_checks_of(DROPOUT))
def test_dropout(check, case):
    check(case)
