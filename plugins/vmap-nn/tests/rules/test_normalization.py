"""Normalisations against the loop: parameters mapped or shared, statistics of each sample's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state

from tests.calls import check_call, check_refused
from vmap_core import InplaceError, vmap

X = torch.linspace(-3, 3, 120).sin().reshape(2, 4, 3, 5)
C, W = torch.linspace(0.5, 2, 4), torch.linspace(-1, 1, 15).reshape(3, 5)
aten = torch.ops.aten

CASES = {
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (3, 5), w, b), X, W, W + 1),
    "layer_norm, no parameters": (lambda x: F.layer_norm(x, (5,)), X),
    "layer_norm, no bias": (lambda x, w: F.layer_norm(x, (5,), w), X, W[0]),
    "layer_norm of one row": (lambda x, w: F.layer_norm(x, (5,), w, eps=0.1), X[0, 0, 0], W[0]),
    "native_layer_norm": (lambda x, w, b: torch.native_layer_norm(x, (5,), w, b, 1e-5), X, W[0], W[1]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), X, C, C - 1),
    "group_norm, no parameters": (lambda x: F.group_norm(x, 4), X[:1]),
    "native_group_norm": (lambda x, w: torch.native_group_norm(x, w, None, 2, 4, 15, 2, 1e-5), X, C),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), X, C, C - 1),
    "batch_norm, training": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), X, C, C - 1),
    "batch_norm, evaluation": (lambda x, m, v: F.batch_norm(x, m, v), X, C - 1, C),
    "batch_norm, evaluation, all": (lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), X, C - 1, C, C, C / 2),
    "batch_norm of two dims": (lambda x, w: F.batch_norm(x, None, None, w, None, True), X[:, :, 0, 0], C),
    "native_batch_norm": (lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5), X),
    "without statistics": (lambda x, w: aten._native_batch_norm_legit.no_stats(x, w, None, True, 0.1, 1e-5)[0], X, C),
    "_weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), X[0, 0], C[:3, None]),
    "_weight_norm of a vector": (lambda v, g: torch._weight_norm(v, g, 0), C, C + 1),
    "rms_norm": (lambda x, w: F.rms_norm(x, (5,), w), X, W[0]),
    "local_response_norm": (lambda x: F.local_response_norm(x, 2), X),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, dtypes=(torch.float64, torch.bfloat16))


def norm_with_statistics(x, mean, var):
    return F.batch_norm(x, mean, var.add_(1), training=True)


def test_statistics_of_every_sample_are_updated():
    check_call(norm_with_statistics, X, C - 1, C, in_dims=(0, 0, 0), dtypes=(torch.float64,), nested=False)
    check_call(norm_with_statistics, X, C - 1, C, in_dims=(2, 1, 1), dtypes=(), nested=False)


@pytest.mark.parametrize("bias", [False, True])
def test_parameters_of_32_bits(bias):
    """A 16-bit input is computed in their dtype, and given back in its own."""

    def norm(x, w):
        return F.layer_norm(x, (5,), w, w if bias else None)

    check_call(norm, X.bfloat16(), W[0], dtypes=(), gradients=False)


def test_batch_norm_in_training_says_what_to_do():
    with pytest.raises(InplaceError, match=r"track_running_stats=False"):
        vmap(torch.nn.BatchNorm1d(4))(torch.randn(3, 5, 4))


def test_batch_norm_with_statistics_of_each_member():
    members = [torch.nn.BatchNorm1d(4) for _ in range(3)]
    x = torch.randn(3, 5, 4)
    params, buffers = stack_module_state(members)
    vmap(lambda p, b, x: functional_call(members[0], (p, b), (x,)))(params, buffers, x)
    for member, row in zip(members, x, strict=True):
        member(row)
    torch.testing.assert_close(buffers["running_mean"], torch.stack([m.running_mean for m in members]))
    torch.testing.assert_close(buffers["running_var"], torch.stack([m.running_var for m in members]))


REFUSED = {
    "layer_norm of other sizes": (lambda x, w: F.layer_norm(x, (3,), w), X, C[:3]),
    "layer_norm of other dtypes": (lambda x, w: F.layer_norm(x, (5,), w), X, W[0].double()),
    "layer_norm of more dims": (lambda x: F.layer_norm(x, (2, 3)), torch.ones(3)),
    "group_norm with a matrix": (lambda x, w: F.group_norm(x, 2, w), X, C[None]),
    "batch_norm, statistics of other sizes": (lambda x, m, v: F.batch_norm(x, m, v), X, C[:1], C[:1]),
    "batch_norm, weights of other sizes": (lambda x, w: F.batch_norm(x, None, None, w, None, True), X, C[:2]),
    "batch_norm of other dtypes": (lambda x, w: F.batch_norm(x, None, None, w, None, True), X, C.long()),
    "group_norm of other groups": (lambda x: F.group_norm(x, 3), X),
    "batch_norm of one value": (lambda x: F.batch_norm(x, None, None, training=True), X[:1, :, 0, 0]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
