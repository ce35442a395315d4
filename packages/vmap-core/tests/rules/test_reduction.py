"""Reductions and scans: against the loop, empty lists of dims, derivatives at ties, segments."""

import pytest
import torch
from torch.autograd import forward_ad

from tests.calls import check_call, check_refused
from vmap_core import vmap
from vmap_core.testing import check_rule

NAN, INF = float("nan"), float("inf")


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # an empty batch, or one number
@pytest.mark.parametrize("shape", [(), (4,), (3, 4)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("op", [torch.var, torch.std, torch.var_mean])
def test_variance_of_all_dims(op, keepdim, shape):
    check_rule(op, torch.randn(shape), None, correction=0, keepdim=keepdim)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [[], None])
@pytest.mark.parametrize("op", [torch.all, torch.any, torch.sum, torch.amax, torch.nansum, torch.linalg.vector_norm])
def test_no_dims(op, dim, keepdim, shape):
    """all() and any() reduce nothing over an empty list, the others everything."""
    if op is torch.amax and dim is None:
        dim = ()
    check_rule(lambda x: op(x, dim=dim, keepdim=keepdim), torch.randn(shape), gradients=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int32])
@pytest.mark.parametrize("op", [torch.all, torch.any])
def test_truth_of_dtypes(op, dtype):
    check_rule(lambda x: op(x, dim=[]), torch.tensor([0, 2, 1]).to(dtype))
    check_rule(op, torch.tensor([0, 2, 1]).to(dtype))


TIES = [
    [1.0, 2.0, 2.0, 1.0],
    [1.0, 1.0, 1.0, 3.0],
    [INF, INF, INF, 1.0],
    [-INF, -INF, -INF, 1.0],
    [INF, -INF, 0.0, INF],
    [NAN, NAN, 2.0, 3.0],
    [NAN, NAN, NAN, NAN],
]
PICKS = [torch.max, torch.min, torch.median, torch.nanmedian]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_the_median_of_nothing(dtype):
    assert check_rule(torch.median, torch.zeros(0, dtype=dtype))


@pytest.mark.parametrize("bdim", [0, -1])
@pytest.mark.parametrize("shape", [(4,), (2, 2), ()])
@pytest.mark.parametrize("op", PICKS)
def test_gradient_shared_by_ties(op, shape, bdim):
    rows = [torch.tensor(row).reshape(shape or (4,)) for row in TIES]
    if not shape:
        rows = [torch.tensor(v) for v in (1.0, INF, -INF, NAN)]
    x = torch.stack(rows, bdim).requires_grad_()
    loop = [row.clone().requires_grad_() for row in rows]
    weights = torch.rand(len(rows))
    want = torch.stack([op(row) for row in loop])
    got = vmap(op, in_dims=bdim)(x)
    assert torch.equal(got.nan_to_num(7), want.nan_to_num(7))
    got.backward(weights)
    want.backward(weights)
    torch.testing.assert_close(x.grad, torch.stack([row.grad for row in loop], bdim), equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch.func.jvp imports what uses it
@pytest.mark.parametrize("op", PICKS)
def test_forward_derivative(op):
    x, t = torch.tensor([[1.0, 2, 2, 5], [3, 3, 4, 0]]), torch.randn(2, 4)
    want = torch.stack([torch.func.jvp(op, (a,), (b,))[1] for a, b in zip(x, t, strict=True)])
    torch.testing.assert_close(torch.func.jvp(vmap(op), (x,), (t,))[1], want)
    with forward_ad.dual_level(), torch.no_grad():
        out = forward_ad.unpack_dual(vmap(op)(forward_ad.make_dual(x, t)))
    torch.testing.assert_close(out.tangent, want)


@pytest.mark.parametrize("op", PICKS)
def test_picks(op):
    check_rule(op, torch.randn(3, 4))
    check_rule(op, torch.randint(9, (3, 4)))
    check_rule(op, torch.randn(()))


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min", "prod"])
def test_segments(reduce):
    """Lengths and offsets that the samples share or have for themselves, along any axis."""
    data, offsets, lengths = torch.randn(8, 4), torch.tensor([0, 2, 5, 8]), torch.tensor([2, 3, 3])
    assert check_rule(lambda x: torch.segment_reduce(x, reduce, offsets=offsets), data)
    assert check_rule(lambda x, i: torch.segment_reduce(x, reduce, offsets=i), data, offsets, in_dims=(0, 0))
    assert check_rule(lambda x, n: torch.segment_reduce(x, reduce, lengths=n, initial=1), data, lengths)
    assert check_rule(
        lambda x, n: torch.segment_reduce(x, reduce, lengths=n, axis=1), data.T.contiguous(), lengths.repeat(4, 1)
    )


X = torch.linspace(-3, 2.5, 24).sin().reshape(2, 3, 4)
M, V, S = X[0], X[0, 0], torch.tensor(0.7)
ALONG = {
    "amax": (torch.amax, X, (0, -1)),
    "amin, kept": (torch.amin, X, (1,), True),
    "count_nonzero": (torch.count_nonzero, X, 1),
    "count_nonzero of all": (torch.count_nonzero, X),
    "kthvalue": (torch.kthvalue, M, 2, 0),
    "logsumexp": (torch.logsumexp, X, (0, 2)),
    "max": (torch.max, M, 0),
    "min, kept": (torch.min, M, -1, True),
    "mean": (torch.mean, X, (0, 1)),
    "median": (torch.median, M, 1),
    "mode": (torch.mode, M, 0),
    "nanmean": (torch.nanmean, X, 1),
    "nanmedian": (torch.nanmedian, M, 0),
    "nansum": (torch.nansum, X, 2),
    "norm": (lambda x: torch.norm(x, dim=1), M),
    "norm of all": (lambda x: x.norm(3), M),
    "norm, dtype": (lambda x: torch.norm(x, 1, 0, dtype=torch.double), M),
    "prod": (torch.prod, M, 1),
    "prod of all": (torch.prod, M),
    "std": (torch.std, X, (0, 2)),
    "std of all": (torch.std, M),
    "var_mean": (lambda x: torch.var_mean(x, 0, correction=0), M),
    "std_mean": (torch.std_mean, M, 1),
    "sum": (torch.sum, X, (0, -1), True),
    "sum of all": (torch.sum, X),
    "sum, dtype": (lambda x: torch.sum(x, dtype=torch.double), M),
    "sum of a scalar": (torch.sum, S, 0),
    "sum of size one": (torch.sum, M[:1, :1], 0),
    "sum of nothing": (torch.sum, M[:0], 0),
    "all": (torch.all, M > -0.9, 0),
    "any": (torch.any, M > 0.9, 1),
    "argmax": (torch.argmax, M, 1),
    "argmin of all": (torch.argmin, M),
    "argmax of all, kept": (lambda x: torch.argmax(x, keepdim=True), M),
    "aminmax": (lambda x: torch.aminmax(x, dim=1), M),
    "aminmax of all": (lambda x: torch.aminmax(x, keepdim=True), M),
    "vector_norm": (torch.linalg.vector_norm, X, 1.5, (0, 2)),
    "softmax": (torch.softmax, X, 1),
    "softmax, dtype": (lambda x: torch.softmax(x, -1, dtype=torch.double), M),
    "log_softmax": (torch.log_softmax, X, 0),
    "softmax of a scalar": (torch.softmax, S, 0),
    "cumsum": (torch.cumsum, X, 1),
    "cumprod": (torch.cumprod, M, -1),
    "cummax": (torch.cummax, M, 1),
    "cummin": (torch.cummin, M, 0),
    "logcumsumexp": (torch.logcumsumexp, M, 1),
}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("name", ALONG)
def test_against_the_loop(name):
    op, *args = ALONG[name]
    check_call(op, *args)


REFUSED = {
    "sum, no such dim": (torch.sum, M, 2),
    "sum, twice the same": (torch.sum, M, (0, 0)),
    "amax of nothing": (torch.amax, M[:0], 0),
    "max of nothing": (torch.max, M[:0]),
    "argmax of nothing": (torch.argmax, M[:0]),
    "kthvalue of too many": (torch.kthvalue, V, 5),
    "mean of integers": (torch.mean, torch.arange(3)),
    "cumsum, no such dim": (torch.cumsum, V, 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
