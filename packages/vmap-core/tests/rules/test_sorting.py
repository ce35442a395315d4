"""Sorting, searching and counting: type promotion of numbers, and values that decide about the result."""

import pytest
import torch

from tests.calls import check_call, check_refused
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


@pytest.mark.parametrize("k", [0, 1])
def test_topk_of_a_scalar(k):
    check_rule(lambda x: torch.topk(x, k).values, torch.randn(()))


X = torch.linspace(-3, 2.5, 24).sin().reshape(2, 3, 4)
M, S = X[0], torch.tensor(0.7)
SORTS = {
    "sort": (torch.sort, X, 1),
    "sort, descending": (torch.sort, M, 0, True),
    "sort, stable": (lambda x: torch.sort(x, dim=-1, stable=True), M),
    "sort of a scalar": (torch.sort, S),
    "sort of size one": (torch.sort, M[:1, :1]),
    "argsort": (torch.argsort, M, 0),
    "argsort, stable": (lambda x: torch.argsort(x, dim=1, descending=True, stable=True), M),
    "msort": (torch.msort, X),
    "msort of a scalar": (torch.msort, S),
    "topk": (torch.topk, M, 2),
    "topk, smallest": (torch.topk, M, 2, 0, False),
    "isin": (torch.isin, M, M[0]),
    "isin a number": (torch.isin, M, 0),
    "a number in": (torch.isin, 0, M),
    "searchsorted of a number": (lambda x: torch.searchsorted(x.sort().values, 0.2), M[0]),
    "searchsorted, unsorted": (
        lambda x, y: torch.searchsorted(x, y, sorter=x.argsort(dim=-1, stable=True)),
        M,
        M * 0.9,
    ),
    "bucketize": (lambda y, x: torch.bucketize(y, x.sort().values), M, M[0]),
    "histc": (lambda x: torch.histc(x, 4, -1, 1), M),
    "histogram": (lambda x: torch.histogram(x, x.new_tensor([-0.5, 0, 0.25, 2])).hist, M),
    "histogram, edges of the sample": (lambda x, e: torch.histogram(x, e.sort().values), M, M[0]),
    "histogram, weights, density": (
        lambda x, w: torch.histogram(x, 3, range=(-1.0, 1.0), weight=w, density=True),
        M,
        M.abs(),
    ),
}
# Which of equal elements PyTorch puts first differs from kernel to kernel, and integers and truth values are often equal.
# It refuses to look for a number among truth values, which a mapped isin does.
FLOATING = {
    "histogram",
    "histogram, edges of the sample",
    "histogram, weights, density",
    "sort",
    "sort, descending",
    "argsort",
    "topk",
    "topk, smallest",
    "a number in",
}


@pytest.mark.parametrize("name", SORTS)
def test_against_the_loop(name):
    op, *args = SORTS[name]
    check_call(op, *args, **({"dtypes": (torch.float64, torch.bfloat16)} if name in FLOATING else {}))


REFUSED = {
    "sort, no such dim": (torch.sort, M, 2),
    "topk of too many": (torch.topk, M, 5),
    "histogram, edges of two dims": (torch.histogram, M, M),
    "histogram, weights of other rows": (lambda x, w: torch.histogram(x, 3, range=(0.0, 1.0), weight=w), M, M[0]),
    "bincount of floats": (torch.bincount, M[0]),
    "searchsorted of other rows": (torch.searchsorted, M, X[0, :2]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
