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


@pytest.mark.parametrize("loss", [F.huber_loss, F.smooth_l1_loss, F.soft_margin_loss, F.mse_loss])
def test_second_derivatives_where_the_formula_changes(loss):
    def f(x, y):
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(x, y, reduction="sum"), x, create_graph=True)
        return torch.autograd.grad((g * torch.arange(5)).sum(), x)[0]

    x, y = torch.tensor([0.0, 1.0, -1.0, 2.0, -0.5]), torch.zeros(2, 5)
    torch.testing.assert_close(vmap(f, in_dims=(None, 0))(x, y), torch.stack([f(x, row) for row in y]))


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
    "binary_cross_entropy beyond one": (F.binary_cross_entropy, X + 4, X.abs()),
    "binary_cross_entropy of nan": (F.binary_cross_entropy, X.abs() * torch.nan, X.abs()),
    "huber_loss, a delta below zero": (lambda x, y: F.huber_loss(x, y, delta=-1.0), X, Y),
    "glu of integers": (F.glu, X.long()),
    "a negative variance": (F.gaussian_nll_loss, X, Y, -X.abs() - 1),
    "variances of other sizes": (F.gaussian_nll_loss, X, Y, X[:, :2].abs()),
    "no reduction": (lambda x, y: F.gaussian_nll_loss(x, y, 0.5, reduction="max"), X, Y),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])


@REDUCTIONS
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy(weighted, reduction):
    def loss(x, y, w=None):
        return F.binary_cross_entropy(x, y, w, reduction=reduction)

    check_call(loss, X.abs(), Y.abs() / 2, *((X.abs() + 1,) if weighted else ()), dtypes=())
    check_call(loss, X[0].abs(), Y[0].abs() / 2, *((X[0, :1].abs() + 1,) if weighted else ()), dtypes=())


def test_binary_cross_entropy_has_a_slope_at_its_ends():
    x, y = (
        torch.tensor([[0.0, 1.0, 0.3], [1.0, 0.0, 0.5]], requires_grad=True),
        torch.tensor([[1, 0, 1], [0.2, 0.7, 0]]),
    )
    got = torch.autograd.grad(vmap(F.binary_cross_entropy)(x, y).sum(), x)[0]
    expected = torch.autograd.grad(sum(F.binary_cross_entropy(a, b) for a, b in zip(x, y, strict=True)), x)[0]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("loss", [F.huber_loss, F.soft_margin_loss, F.mse_loss, F.smooth_l1_loss, F.l1_loss])
def test_dtypes_of_mixed_operands(loss):
    check_call(loss, X.bfloat16(), X * 2, dtypes=(), gradients=False)
