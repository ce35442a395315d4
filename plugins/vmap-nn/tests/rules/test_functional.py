"""Functions that only arrange arguments, against the loop: what goes straight to an operator, and what through the body."""

import pytest
import torch
import torch.nn.functional as F

from tests.calls import check_call
from vmap_core import vmap
from vmap_core.testing import check_rule

X = torch.linspace(-3, 3, 24).sin().reshape(2, 3, 4)
C, CLASSES, I = torch.linspace(0.5, 2, 3), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]]), torch.tensor([[0, 1], [1, 1]])  # noqa: E741
ACTIVATIONS = ["relu", "silu", "mish", "selu", "hardswish", "hardsigmoid", "leaky_relu", "elu"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    function = getattr(F, name)
    check_call(function, X, dtypes=(torch.bfloat16, torch.int64))
    check_call(lambda x: function(x.clone(), inplace=True), X, dtypes=())
    assert check_rule(lambda x: function(x, inplace=True), X)


CASES = {
    "leaky_relu, slope": (F.leaky_relu, X, 0.3),
    "elu, alpha": (lambda x: F.elu(x, alpha=0.3), X),
    "softmax": (F.softmax, X, 1),
    "softmax, dtype": (lambda x: F.softmax(x, dim=-1, dtype=torch.double), X),
    "log_softmax": (F.log_softmax, X, 0),
    "log_softmax, dtype": (lambda x: F.log_softmax(x, -1, dtype=torch.double), X),
    "dropout, not in training": (lambda x: F.dropout(x, 0.5, training=False), X),
    "layer_norm": (lambda x, w: F.layer_norm(x, (4,), w), X, X[0, 0]),
    "batch_norm": (lambda x, m, v: F.batch_norm(x, m, v), X, C, C),
    "batch_norm, training": (lambda x: F.batch_norm(x, None, None, training=True), X),
    "cross_entropy": (F.cross_entropy, X, CLASSES),
    "cross_entropy, options": (lambda x, t: F.cross_entropy(x, t, ignore_index=1, label_smoothing=0.1), X, CLASSES),
    "embedding": (lambda i, w: F.embedding(i, w), I, X[0]),
    "embedding, padded": (lambda i, w: F.embedding(i, w, padding_idx=1), I, X[0]),
    "pad": (lambda x: F.pad(x, (1, 2)), X),
    "pad with a value": (lambda x: F.pad(x, (1, 2, 0, 1), value=3), X),
    "pad, reflected": (lambda x: F.pad(x, (1, 2), mode="reflect"), X),
    "mse_loss": (F.mse_loss, X, X * 2),
    "mse_loss, sum": (lambda x, y: F.mse_loss(x, y, reduction="sum"), X, X * 2),
    "l1_loss": (lambda x, y: F.l1_loss(x, y, reduction="none"), X, X * 2),
    "mse_loss, weighted": (lambda x, y, w: F.mse_loss(x, y, weight=w), X, X * 2, X.abs()),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, dtypes=(torch.float64, torch.bfloat16))


@pytest.mark.filterwarnings("ignore:.*Implicit dimension choice", "ignore:.*size_average and reduce args")
def test_deprecated_arguments_go_through_the_body():
    check_call(F.softmax, X, dtypes=())
    check_call(F.log_softmax, X[0], dtypes=())
    check_call(lambda x, y: F.mse_loss(x, y, reduce=False), X, X * 2, dtypes=())
    check_call(lambda x, t: F.cross_entropy(x, t, size_average=False), X, CLASSES, dtypes=())


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_shapes_that_broadcast():
    check_call(F.l1_loss, X, X[0] * 2, dtypes=())


def test_dropout():
    check_rule(F.dropout, X, randomness="same", gradients=False)
    check_rule(F.dropout, torch.ones(64), randomness="different", nested=False, batch_sizes=(3,))
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match="dropout probability"):
            vmap(lambda x, p=p: F.dropout(x, p), randomness="same")(X)
