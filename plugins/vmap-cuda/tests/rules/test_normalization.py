"""cuDNN's batch normalisation: parameters, running statistics, and its gradient."""

import pytest
import torch
from cuda_case import Case
from cuda_checks import checks_of

from vmap_core import InplaceError, vmap

aten = torch.ops.aten


BATCH_NORM, BATCH_NORM_BACK = aten.cudnn_batch_norm.default, aten.cudnn_batch_norm_backward.default


def batch_norm_back(grad, x, w, b):
    out, mean, rstd, reserve = BATCH_NORM(x, w, b, None, None, True, 0.1, 1e-5)
    return out, *BATCH_NORM_BACK(x, grad, w, None, None, mean, rstd, 1e-5, reserve)


def statistics(x, w, b, mean, var):
    mean, var = mean * 1, var.abs() + 1
    out, *saved, _ = BATCH_NORM(x, w, b, mean, var, True, 0.1, 1e-5)
    return out, *saved, mean, var


def evaluation(x, w, b, mean, var):
    return BATCH_NORM(x, w, b, mean, var.abs() + 1, False, 0.1, 1e-5)[0]


CASES = {
    "cudnn_batch_norm": Case(
        lambda x, w, b: BATCH_NORM(x, w, b, None, None, True, 0.1, 1e-5)[:3],
        lambda t: [t(4, 3, 2, 2), t(3), t(3)], (BATCH_NORM,), shapes=False,
    ),
    "cudnn_batch_norm, statistics": Case(
        statistics, lambda t: [t(4, 3, 5), t(3), t(3), t(3), t(3)], (BATCH_NORM,), gradients=False, shapes=False,
        on_gpu=False,
    ),
    "cudnn_batch_norm, evaluation": Case(
        evaluation, lambda t: [t(4, 3, 2, 2), t(3), t(3), t(3), t(3)], (BATCH_NORM,), gradients=False, shapes=False,
    ),
    "cudnn_batch_norm_backward": Case(
        batch_norm_back, lambda t: [t(4, 3, 2, 2), t(4, 3, 2, 2), t(3), t(3)], (BATCH_NORM, BATCH_NORM_BACK),
        lambda dims: dims[1:] != (None,) * 3, gradients=False, shapes=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("check", "case"), checks_of(CASES))
def test_operators(check, case):
    check(case)


def test_running_statistics_that_samples_share_are_not_written():
    x, w, mean, var = torch.randn(3, 4, 2, 5), torch.ones(2), torch.zeros(2), torch.ones(2)
    with pytest.raises(InplaceError, match="running statistics that all samples share"):
        vmap(lambda x: torch.cudnn_batch_norm(x, w, w, mean, var, True, 0.1, 1e-5)[0])(x)
    assert not mean.any()


def test_running_statistics_of_each_sample_are_written():
    x, w = torch.randn(3, 4, 2, 5), torch.ones(2)
    mean, var = torch.zeros(2, 3), torch.ones(3, 2)
    expected = mean.clone(), var.clone()
    norm = lambda x, m, v: torch.cudnn_batch_norm(x, w, w, m, v, True, 0.1, 1e-5)[0]  # noqa: E731
    got = vmap(norm, in_dims=(0, 1, 0))(x, mean, var)
    for i in range(3):
        torch.testing.assert_close(got[i], norm(x[i], expected[0][:, i], expected[1][i]))
    torch.testing.assert_close((mean, var), expected)
