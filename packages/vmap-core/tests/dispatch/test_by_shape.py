"""Rules that look at nothing but shapes are asked once; whatever else they look at, the result is the loop's."""

import pytest
import torch
from torch import Tensor

from vmap_core import vmap
from vmap_core.dispatch import steps
from vmap_core.extend import RulePack, by_shape, register, unregister
from vmap_core.testing import check_rule

asked = []


@torch.library.custom_op("vmap_by_shape::halves", mutates_args=())
def halves(x: Tensor, dim: int, twice: bool = False) -> Tensor:
    """(*, n, *) -> (*, n // 2, *): the sum of two halves of a dim, or twice that."""
    n = x.shape[dim] // 2
    out = x.narrow(dim, 0, n) + x.narrow(dim, n, n)
    return out * 2 if twice else out


halves.register_autograd(
    lambda ctx, grad: (torch.cat([grad, grad], ctx.dim) * (2 if ctx.twice else 1), None, None),
    setup_context=lambda ctx, inputs, output: ctx.__dict__.update(dim=inputs[1], twice=inputs[2]),
)


def of_rank(info, in_dims, x, dim, twice=False):
    asked.append(x)
    d = dim % (x.ndim - 1)
    return halves(x, d + (d >= in_dims[0]), twice), in_dims[0]


def of_shape(info, in_dims, x, dim, twice=False):
    assert x.shape[in_dims[0]] == info.batch_size
    return of_rank(info, in_dims, x, dim, twice)


def of_batch_size(info, in_dims, x, dim, twice=False):
    return x.view(info.batch_size, -1, 1, 1), 0


def of_dtype(info, in_dims, x, dim, twice=False):
    out, bdim = of_rank(info, in_dims, x, dim, twice)
    return (out.double() if x.dtype == torch.float16 else out), bdim


def in_two_steps(info, in_dims, x, dim, twice=False):
    asked.append(x)
    return halves(x.movedim(in_dims[0], 0), dim % (x.ndim - 1) + 1, twice), 0


@pytest.fixture
def rule(request):
    pack = RulePack("by_shape")
    pack.rule(halves)(by_shape(request.param))
    register(pack)
    asked.clear()
    yield request.param
    unregister("by_shape")


def tensors():
    return [x for x in asked if type(x) is Tensor]


@pytest.mark.parametrize("rule", [of_rank, of_shape, of_dtype, in_two_steps], indirect=True)
def test_against_the_loop(rule):
    x = torch.randn(4, 6)
    for args, kwargs in (((0,), {}), ((-1,), {}), ((1, True), {}), ((1,), {"twice": True})):
        for _ in range(2):
            check_rule(halves, x, *args, **kwargs)


@pytest.mark.parametrize(
    ("rule", "times"), [(of_rank, 1), (of_shape, 3), (of_dtype, 6), (in_two_steps, 6)], indirect=["rule"]
)
def test_how_often_a_rule_runs(rule, times):
    for size in (2, 3, 4):
        for _ in range(2):
            vmap(lambda x: halves(x, 0))(torch.randn(size, 4, 6))
    assert len(tensors()) == times


@pytest.mark.parametrize("rule", [of_batch_size], indirect=True)
def test_the_batch_size_is_one_of_the_sizes(rule):
    for size in (2, 3, 6):
        for _ in range(2):
            assert vmap(lambda x: halves(x, 0))(torch.randn(size, 4, 6)).shape == (size, 24, 1, 1)


def test_properties_are_asked_once():
    x = torch.randn(3, 4, 5)
    for dim in (0, 1, 2, 0):
        for name in ("T", "mT"):
            got = vmap(lambda s, name=name: getattr(s, name), in_dims=dim)(x)
            torch.testing.assert_close(got, torch.stack([s.mT for s in x.unbind(dim)]))
            assert got.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize("rule", [of_rank, of_shape], indirect=True)
def test_other_arguments_are_other_calls(rule):
    x = torch.randn(3, 4, 6)
    for _ in range(2):
        for call in (
            lambda x: halves(x, 0),
            lambda x: halves(x, 1),
            lambda x: halves(x, 1, True),
            lambda x: halves(x, 1, twice=False),
            lambda x: halves(x, 1, twice=True),
        ):
            for dim in (0, 1, 2):
                moved = x.movedim(0, dim)
                torch.testing.assert_close(vmap(call, in_dims=dim)(moved), torch.stack([call(row) for row in x]))


@pytest.mark.parametrize("rule", [of_rank], indirect=True)
def test_what_is_remembered_has_a_bound(rule, monkeypatch):
    monkeypatch.setattr(steps, "ENTRIES", 3)
    x = torch.randn(2, 4, 4, 4, 4, 4)
    for _ in range(2):
        for dim in range(5):
            torch.testing.assert_close(vmap(lambda x, d=dim: halves(x, d))(x), halves(x, dim + 1))
    assert 5 < len(tensors()) <= 10


def test_errors_are_told_in_the_samples_terms_each_time():
    x = torch.randn(2, 3)
    vmap(lambda x: x.select(0, 2))(x)
    vmap(lambda x: x.view(3, 1))(x)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"shape '\[2, 2\]' is invalid for input of size 3"):
            vmap(lambda x: x.view(2, 2))(x)
        with pytest.raises(IndexError, match="range of"):
            vmap(lambda x: x.sum(1))(x)
        with pytest.raises(IndexError):
            vmap(lambda x: x.select(0, 3))(x)


def test_sizes_decide():
    squeeze = vmap(lambda x: x.squeeze(0))
    for shape in ((2, 1, 3), (2, 3, 1), (1, 1, 1), (2, 1, 3)):
        assert squeeze(torch.ones(shape)).shape == torch.stack([r.squeeze(0) for r in torch.ones(shape)]).shape
        assert vmap(lambda x: x.squeeze(), in_dims=1)(torch.ones(shape)).shape[:1] == shape[1:2]
