"""Losses over classes against the loop: every reduction, weights, ignored classes, probabilities, smoothing."""

import pytest
import torch
import torch.nn.functional as F

from tests.calls import check_call, check_refused

X = torch.linspace(-3, 3, 60).sin().reshape(3, 4, 5)
ROWS, ROW = X[:, :, 0], X[0, :, 0]
W = torch.tensor([0.5, 1.0, 2.0, 0.1])
CLASS, CLASSES, IMAGE = torch.tensor(2), torch.tensor([2, 0, 3]), torch.tensor([[0, 1, 2, 3, 0]] * 3)
IGNORED = torch.tensor([2, -100, 1])
P = ROWS.softmax(1)

CASES = {
    "one prediction": (ROW, CLASS),
    "rows": (ROWS, CLASSES),
    "rows, weighted": (ROWS, CLASSES, W),
    "one row": (ROWS[:1], CLASSES[:1], W),
    "images": (X, IMAGE),
    "images, weighted": (X, IMAGE, W),
    "ignored": (ROWS, IGNORED),
    "ignored, weighted": (ROWS, IGNORED, W),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_nll_loss(name, reduction):
    check_call(lambda *a: F.nll_loss(*a, reduction=reduction), *CASES[name], dtypes=(torch.float64,))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", [*CASES, "probabilities", "probabilities, weighted"])
def test_cross_entropy(name, reduction, smoothing):
    args = CASES.get(name) or (ROWS, P, *([W] if name.endswith("weighted") else []))

    def loss(*args):
        return F.cross_entropy(*args, reduction=reduction, label_smoothing=smoothing)

    check_call(loss, *args, dtypes=(torch.bfloat16,) if name == "rows" else ())


def test_another_class_is_ignored():
    check_call(lambda x, t: F.cross_entropy(x, t, ignore_index=2), ROWS, CLASSES, dtypes=())
    check_call(lambda x, t: F.nll_loss(x, t, ignore_index=0), X, IMAGE, dtypes=())


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="PyTorch before 2.13 has no linear_cross_entropy")
def test_linear_cross_entropy():
    for reduction in ("none", "mean", "sum"):
        check_call(
            lambda x, w, t, r=reduction: F.linear_cross_entropy(x, w, t, reduction=r),
            X[:, :, 0],
            X[0].T,
            CLASSES,
            dtypes=(),
        )


REFUSED = {
    "classes of other shapes": (F.cross_entropy, ROWS, CLASSES[:2]),
    "a class that is none": (F.nll_loss, ROWS, CLASSES + 9),
    "weights of other length": (F.nll_loss, ROWS, CLASSES, W[:3]),
    "no classes": (F.cross_entropy, ROW[0], CLASS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
