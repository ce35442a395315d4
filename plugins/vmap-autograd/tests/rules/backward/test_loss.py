"""Gradients of losses whose kernels take a whole batch, against the loop. PyTorch has no derivative of them."""

import pytest
import torch

from vmap_core.testing import check_rule

torch.manual_seed(0)
aten = torch.ops.aten
D = torch.double


def r(*shape):
    return torch.randn(*shape, dtype=D)


CASES = {
    **{
        f"multi_margin_loss, reduction {k}": (
            aten.multi_margin_loss_backward,
            (r(4) if k == 0 else r(()), r(4, 5), torch.randint(5, (4,)), 1, 1.0, None, k),
        )
        for k in (0, 1, 2)
    },
    "multilabel_margin_loss": (
        aten.multilabel_margin_loss_backward,
        (r(()), r(2, 4), torch.tensor([[3, 0, -1, 1], [2, -1, 1, 0]]), 1, torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]], dtype=D)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, args = CASES[name]
    check_rule(op.default, *args, gradients=False)


def test_ctc():
    log_probs = r(6, 2, 5).log_softmax(-1)
    targets, lengths = torch.randint(1, 5, (2, 3)), ([6, 5], [3, 2])
    loss, alpha = aten._ctc_loss(log_probs, targets, *lengths, 0, False)
    check_rule(
        aten._ctc_loss_backward.default, r(2), log_probs, targets, *lengths, loss, alpha, 0, True, gradients=False
    )
