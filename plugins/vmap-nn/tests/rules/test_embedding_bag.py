"""Bags of embeddings against the loop: all outputs, every mode; tables, indices, offsets and weights mapped or shared."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from vmap_core import FallbackError, fallback_policy, vmap

B, V, D, K = 3, 5, 4, 6
TABLE = torch.randn(B, V, D, dtype=torch.double, requires_grad=True)
INDICES = torch.randint(0, V, (B, K))
OFFSETS = torch.tensor([[0, 2, 2], [0, 0, 5], [0, 3, 6]])  # empty bags too
WEIGHTS = torch.randn(B, K, dtype=torch.double, requires_grad=True)
MODES = {"sum": 0, "mean": 1, "max": 2}


@pytest.fixture(autouse=True)
def no_loop():
    with fallback_policy("error"):
        yield


def compare(f, dims, *given):
    """Outputs and gradients of a map and of the loop."""
    got = vmap(f, in_dims=dims)(*given)
    rows = [f(*(t if d is None else t.select(d, i) for t, d in zip(given, dims, strict=True))) for i in range(B)]
    expected = [torch.stack(r) for r in zip(*rows, strict=True)]
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)
    inputs = [t for t in given if t.requires_grad]
    weights = torch.randn(got[0].shape, dtype=torch.double)
    for a, b in zip(*(torch.autograd.grad((o[0] * weights).sum(), inputs) for o in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [None, 1, -2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mapped", [m for m in itertools.product([True, False], repeat=3) if any(m)])
def test_all_outputs(mode, padding, last, mapped):
    offsets = torch.cat((OFFSETS, torch.full((B, 1), K)), 1) if last else OFFSETS
    given = [t if m else t[0] for t, m in zip((TABLE, INDICES, offsets), mapped, strict=True)]
    dims = tuple(0 if m else None for m in mapped)
    compare(lambda w, i, o: torch.embedding_bag(w, i, o, False, MODES[mode], False, None, last, padding), dims, *given)


@pytest.mark.parametrize("mapped", [m for m in itertools.product([True, False], repeat=3) if any(m)])
def test_weights_of_the_indices(mapped):
    given = [t if m else t[0] for t, m in zip((TABLE, INDICES, WEIGHTS), mapped, strict=True)]
    dims = tuple(0 if m else None for m in mapped)
    offsets = OFFSETS[0]

    def bags(w, i, p):
        return (F.embedding_bag(i, w, offsets, mode="sum", per_sample_weights=p, padding_idx=2),)

    compare(bags, dims, *given)


def test_rows_of_bags_other_dims_and_nesting():
    indices = torch.randint(0, V, (B, 2, 3))
    compare(lambda i, w: (F.embedding_bag(i, w),), (2, 1), indices.movedim(0, 2), TABLE.movedim(0, 1))
    nested = vmap(vmap(lambda i, w: F.embedding_bag(i, w), in_dims=(None, 0)), in_dims=(0, None))(indices, TABLE)
    assert nested.shape == (B, B, 2, D)
    torch.testing.assert_close(nested[1, 2], F.embedding_bag(indices[1], TABLE[2]))
    assert vmap(F.embedding_bag)(indices[:0], TABLE[:0]).shape == (0, 2, D)


def test_an_index_out_of_range_reads_no_other_members_row():
    with pytest.raises((RuntimeError, IndexError)):
        F.embedding_bag(torch.tensor([[V]]), TABLE[0])
    for bad in (V, -1):
        with pytest.raises((RuntimeError, IndexError)):
            vmap(F.embedding_bag)(torch.full((B, 1, 2), bad), TABLE)


def test_offsets_that_are_not_regular_are_left_to_the_kernel():
    indices, offsets = INDICES, torch.tensor([[0, 2, 4]] * B)  # the last one ends before the last index
    with pytest.raises(FallbackError), fallback_policy("error"):
        vmap(lambda i, o: F.embedding_bag(i, TABLE[0], o, include_last_offset=True))(indices, offsets)
    with fallback_policy("silent"):
        got = vmap(lambda i, o: F.embedding_bag(i, TABLE[0], o, include_last_offset=True, mode="sum"))(indices, offsets)
        with pytest.raises(RuntimeError, match="has to be 0"):
            vmap(lambda i, o: F.embedding_bag(i, TABLE[0], o))(indices, offsets + 1)
    rows = [
        F.embedding_bag(i, TABLE[0], o, include_last_offset=True, mode="sum")
        for i, o in zip(indices, offsets, strict=True)
    ]
    torch.testing.assert_close(got, torch.stack(rows))
