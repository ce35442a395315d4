"""Searching and counting: type promotion of numbers, and values that decide about the result."""

import pytest
import torch

from vmap_core import DataDependentError, vmap
from vmap_core.testing import check_rule

NAN, INF = float("nan"), float("inf")


def rows(f, x):
    return torch.stack([f(row) for row in x])


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("value", [2, 2.5, -1])
def test_a_number_is_not_truncated_to_the_sequence_dtype(value, right):
    seq = torch.tensor([[1, 2, 3, 5], [0, 2, 4, 4], [1, 1, 2, 9]])
    for f in (
        lambda s: torch.searchsorted(s, value, right=right),
        lambda s: torch.bucketize(value, s, right=right),
    ):
        assert torch.equal(vmap(f)(seq), rows(f, seq))


@pytest.mark.parametrize("right", [False, True])
def test_a_double_scalar_is_searched_as_a_float(right):
    seq = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.1, 0.5]])
    values = torch.full((2,), 0.1, dtype=torch.float64)
    want = torch.stack([torch.searchsorted(s, v, right=right) for s, v in zip(seq, values, strict=True)])
    assert torch.equal(vmap(lambda s, v: torch.searchsorted(s, v, right=right))(seq, values), want)
    assert torch.equal(vmap(lambda s, v: torch.bucketize(v, s, right=right))(seq, values), want)


def test_searchsorted():
    seq = torch.randn(5).sort().values
    check_rule(torch.searchsorted, seq, torch.randn(4))
    check_rule(torch.searchsorted, torch.randn(2, 5).sort(1).values, torch.randn(2, 3))
    check_rule(torch.bucketize, torch.randn(2, 3), seq)


def test_bucketize_takes_one_dim():
    with pytest.raises(RuntimeError, match=r"must be 1 dimension, but got dim\(2\)"):
        vmap(torch.bucketize)(torch.randn(3, 2, 4), torch.randn(3, 2, 5))


@pytest.mark.parametrize("invert", [False, True])
def test_isin_unique_within_each_sample_only(invert):
    elements = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5], [9, 1, 2, 40]])
    test = torch.arange(2, 32)

    def f(e):
        return torch.isin(e, test, assume_unique=True, invert=invert)

    assert torch.equal(vmap(f)(elements), rows(f, elements))


@pytest.mark.parametrize("size", [(20,), ()])
@pytest.mark.parametrize(("bins", "low", "high"), [(7, 0, 0), (4, 2, 2), (7, 0.1, 0.8), (10, 0, 0.3), (10, 0, 1)])
def test_histc_at_the_edges_of_bins(bins, low, high, size):
    x = torch.randint(0, 11, (50, *size)) / 10

    def f(x):
        return torch.histc(x, bins, low, high)

    assert torch.equal(vmap(f)(x), rows(f, x))


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_histc_needs_a_finite_range(value):
    x = torch.tensor([[1.0, 2.0], [1.0, value]])
    with pytest.raises(RuntimeError, match="is not finite"):
        vmap(torch.histc)(x)
    assert torch.equal(vmap(lambda x: torch.histc(x, 4, 0, 3))(x), rows(lambda x: torch.histc(x, 4, 0, 3), x))


def test_bincount():
    x = torch.tensor([[1, 2, 0], [2, 2, 2]])
    assert torch.equal(vmap(torch.bincount)(x), rows(torch.bincount, x))
    check_rule(
        lambda x, w: torch.bincount(x, w, minlength=7), torch.randint(0, 6, (5,)), torch.randn(5), gradients=False
    )
    with pytest.raises(DataDependentError, match=r"different lengths \(2 to 3\).*minlength=3"):
        vmap(torch.bincount)(torch.tensor([[1, 0], [2, 0]]))
    with pytest.raises(RuntimeError, match="weights should be 1-d"):
        vmap(lambda x, w: torch.bincount(x, w, 7), in_dims=(0, None))(torch.zeros(3, 4).long(), torch.randn(2, 2))


@pytest.mark.parametrize("size", [0, 2, 8])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 0)])
def test_nonzero_static(shape, size):
    check_rule(lambda x: torch.nonzero_static(x, size=size, fill_value=7), torch.randint(0, 2, shape))


@pytest.mark.parametrize("k", [0, 1])
def test_topk_of_a_scalar(k):
    check_rule(lambda x: torch.topk(x, k).values, torch.randn(()))


@pytest.mark.parametrize("f", [torch.nonzero, torch.argwhere, torch.unique, torch.unique_consecutive])
def test_results_as_long_as_the_values_say(f):
    with pytest.raises(DataDependentError, match=r"(?s)dynamic shape.*test_sorting.py:\d+.*Instead:"):
        vmap(f)(torch.tensor([[1, 0], [1, 1]]))
