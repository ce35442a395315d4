"""ctc_loss against the loop: lengths and targets mapped or shared, targets padded or one after the other."""

import itertools

import pytest
import torch
from torch.nn.functional import ctc_loss

from vmap_core import fallback_policy, vmap

B, T, N, C = 3, 9, 2, 5


@pytest.fixture(autouse=True)
def no_loop():
    with fallback_policy("error"):
        yield


def problem(concatenated):
    torch.manual_seed(0)
    log_probs = torch.randn(B, T, N, C, dtype=torch.double).log_softmax(-1).requires_grad_()
    targets = torch.randint(1, C, (B, 7) if concatenated else (B, N, 4))
    lengths = torch.tensor([[3, 4], [5, 2], [7, 0]] if concatenated else [[3, 2], [4, 3], [1, 0]])
    inputs = torch.tensor([[9, 8], [9, 9], [7, 5]])
    return log_probs, targets, inputs, lengths


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("concatenated", [False, True])
@pytest.mark.parametrize("mapped", [m for m in itertools.product([True, False], repeat=4) if any(m)])
def test_lengths_and_targets(reduction, concatenated, mapped):
    tensors = problem(concatenated)
    given = [t if m else t[0] for t, m in zip(tensors, mapped, strict=True)]
    dims = tuple(0 if m else None for m in mapped)

    def loss(*args):
        return ctc_loss(*args, reduction=reduction, zero_infinity=True)

    got = vmap(loss, in_dims=dims)(*given)
    expected = torch.stack([loss(*(t[i] if m else t for t, m in zip(given, mapped, strict=True))) for i in range(B)])
    torch.testing.assert_close(got, expected)
    weights = torch.randn(got.shape, dtype=got.dtype)
    (a,) = torch.autograd.grad((got * weights).sum(), given[0])
    (b,) = torch.autograd.grad((expected * weights).sum(), given[0])
    torch.testing.assert_close(a, b)


def test_one_sequence_and_numbers():
    log_probs, targets, _, _ = problem(concatenated=False)
    one, goals = log_probs[:, :, 0], targets[:, 0]
    for lengths in (((9,), (4,)), (torch.tensor(9), torch.tensor(4))):
        got = vmap(lambda x, t, lengths=lengths: ctc_loss(x, t, *lengths))(one, goals)
        torch.testing.assert_close(
            got, torch.stack([ctc_loss(x, t, *lengths) for x, t in zip(one, goals, strict=True)])
        )
    nested = vmap(vmap(lambda x, t: ctc_loss(x, t, (9,), (4,)), in_dims=(1, 0)))(log_probs, targets)
    assert nested.shape == (B, N)
    torch.testing.assert_close(nested[:, 0], got)


def test_lengths_that_do_not_fit():
    log_probs, targets, inputs, lengths = problem(concatenated=True)
    with pytest.raises(RuntimeError, match="sum up to"):
        vmap(ctc_loss)(log_probs, targets, inputs, lengths + 3)
    with pytest.raises(RuntimeError, match="sum up to"):
        vmap(lambda x, t: ctc_loss(x, t, (9,), (3,)))(log_probs[:, :, 0], targets[:, :4])
    with pytest.raises(RuntimeError, match="input_lengths"):
        vmap(ctc_loss)(log_probs, targets, inputs + 3, lengths)
