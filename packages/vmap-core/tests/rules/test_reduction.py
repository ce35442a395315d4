"""Reductions: keepdim as a keyword that only some schemas have, empty lists of dims, derivatives at ties."""

import pytest
import torch
from torch.autograd import forward_ad

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
