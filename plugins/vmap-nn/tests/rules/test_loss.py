"""Losses by formulas against the loop: every reduction, broadcasting, targets as lists of classes, variances."""

import pytest
import torch
import torch.nn.functional as F

from tests.calls import check_call, check_refused
from vmap_core import vmap

X = torch.linspace(-3, 3, 12).sin().reshape(3, 4)
Y = X.flip(0) * 2
TARGETS = torch.tensor([[3, 0, -1, 1], [2, -1, 1, 0], [0, 1, 2, 3]])
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


@REDUCTIONS
@pytest.mark.parametrize("x", [X, X[0], X[0, 0], X[:, :1]], ids=["matrix", "row", "scalar", "column"])
def test_huber_loss(x, reduction):
    check_call(lambda x, y: F.huber_loss(x, y, reduction=reduction, delta=0.7), x, x.flip(0) if x.ndim else x * 3)
    for target in (x.double() * 2, x > 0, (x * 3).long()):  # the result is of the first dtype
        check_call(lambda x, y: F.huber_loss(x, y, reduction=reduction), x, target, dtypes=(), gradients=False)
        check_call(lambda x, y: F.soft_margin_loss(x, y, reduction=reduction), x, target, dtypes=(), gradients=False)


@REDUCTIONS
@pytest.mark.parametrize("x", [X, X[0], X[:1]], ids=["matrix", "row", "one row"])
def test_multilabel_margin_loss(x, reduction):
    targets = TARGETS[0] if x.ndim == 1 else TARGETS[: len(x)]
    check_call(lambda x, t: F.multilabel_margin_loss(x, t, reduction=reduction), x, targets, dtypes=(torch.float64,))


@REDUCTIONS
@pytest.mark.parametrize("full", [False, True])
def test_gaussian_nll_loss(full, reduction):
    def loss(x, y, v):
        return F.gaussian_nll_loss(x, y, v, full=full, reduction=reduction)

    check_call(loss, X, Y, X.abs(), dtypes=(torch.bfloat16,))
    for var in (X[:, 0].abs(), X[:, :1].abs(), torch.zeros(3, 4)):
        check_call(loss, X, Y, var, dtypes=(), nested=False)
    check_call(lambda x, y: loss(x, y, 0.5), X, Y, dtypes=())


def test_a_negative_variance_of_any_sample_is_found():
    var = torch.ones(2, 3, 4)
    var[1, 2, 0] = -1
    with pytest.raises(ValueError, match="negative"):
        vmap(lambda v: F.gaussian_nll_loss(X, Y, v))(var)


@pytest.mark.parametrize("dim", [0, -1])
def test_glu(dim):
    check_call(F.glu, X if dim else X.T, dim, dtypes=(torch.float64, torch.bfloat16))


REFUSED = {
    "glu of an odd dim": (F.glu, X, 0),
    "labels of other shapes": (F.multilabel_margin_loss, X, TARGETS[:2]),
    "a negative variance": (F.gaussian_nll_loss, X, Y, -X.abs() - 1),
    "variances of other sizes": (F.gaussian_nll_loss, X, Y, X[:, :2].abs()),
    "no reduction": (lambda x, y: F.gaussian_nll_loss(x, y, 0.5, reduction="max"), X, Y),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
