"""Gradients of embedding_bag against the loop: what is batched, in every mode, with padding, of one bag or none."""

import pytest
import torch

from vmap_core.testing import check_rule

torch.manual_seed(0)
aten = torch.ops.aten
D = torch.double
WEIGHT, INDICES, WEIGHTS = torch.randn(5, 3, dtype=D), torch.tensor([0, 4, 4, 1, 2]), torch.randn(5, dtype=D)
BAGS = {"three bags": [0, 2, 4], "an empty bag": [0, 0, 3], "one bag": [0]}
MODES = {"sum": 0, "mean": 1, "max": 2}


def forward(offsets, mode, weights=None, padding=-1):
    return aten._embedding_bag(WEIGHT, INDICES, offsets, False, mode, False, weights, False, padding)


@pytest.mark.parametrize("padding", [-1, 4])
@pytest.mark.parametrize("bags", BAGS)
@pytest.mark.parametrize("mode", MODES)
def test_of_the_table(mode, bags, padding):
    offsets = torch.tensor(BAGS[bags])
    out, offset2bag, sizes, places = forward(offsets, MODES[mode], padding=padding)

    def backward(grad, indices):
        rest = (offsets, offset2bag, sizes, places, 5, False, MODES[mode], False, None, padding)
        return aten._embedding_bag_backward.default(grad, indices, *rest)

    grad = torch.randn_like(out)
    check_rule(lambda grad: backward(grad, INDICES), grad, gradients=False)
    check_rule(backward, grad, INDICES, gradients=False, fallback=True)  # indices of each sample: a call each


@pytest.mark.parametrize("padding", [-1, 4])
@pytest.mark.parametrize("bags", BAGS)
def test_of_the_weights_of_the_indices(bags, padding):
    offsets = torch.tensor(BAGS[bags])
    out, offset2bag, *_ = forward(offsets, 0, WEIGHTS, padding)

    def backward(grad, table, indices):
        return aten._embedding_bag_per_sample_weights_backward.default(
            grad, table, indices, offsets, offset2bag, 0, padding
        )

    check_rule(backward, torch.randn_like(out), WEIGHT, INDICES, gradients=False)
