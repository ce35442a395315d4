"""The makers of rules for operators of one's own, each on operators of many kinds, against the loop."""

import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vmap_core import InplaceError, RandomnessError, vmap
from vmap_core.extend import (
    RulePack,
    along_dim,
    batch_dims,
    broadcast_all,
    decompose,
    expand_dims,
    pointwise,
    reduction,
    register,
    sequential,
    unregister,
)  # fmt: skip
from vmap_core.testing import check_rule

RANDOM = (torch.Tag.nondeterministic_seeded,)
calls: list[str] = []


def custom_op(name, mutates=(), tags=None):
    return torch.library.custom_op(f"vmap_makers::{name}", mutates_args=mutates, tags=tags)


library = torch.library.Library("vmap_makers_lib", "DEF")
library.define("scale(Tensor x, Tensor y, *, Tensor by) -> (Tensor, Tensor)")


def _scale(x, y, *, by):
    calls.append("scale")
    return x * y * by, x + by


library.impl("scale", _scale, "CompositeExplicitAutograd")
scale = torch.ops.vmap_makers_lib.scale.default


@custom_op("mean_of")
def mean_of(tensors: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
    calls.append("mean_of")
    total = sum(tensors[1:], tensors[0].clone())
    return total / len(tensors) if weight is None else total * weight


@custom_op("add_to", mutates=("x", "count"))
def add_to(x: Tensor, y: Tensor, count: Tensor) -> None:
    calls.append("add_to")
    x += y
    count += 1


@custom_op("jitter", tags=RANDOM)
def jitter(x: Tensor, size: Tensor) -> Tensor:
    calls.append("jitter")
    return x + size * torch.rand(torch.broadcast_shapes(x.shape, size.shape))


@custom_op("det_and_inv")
def det_and_inv(x: Tensor) -> tuple[Tensor, Tensor]:
    calls.append("det_and_inv")
    return torch.linalg.det(x), torch.linalg.inv(x)


@custom_op("products")
def products(a: Tensor, b: Tensor, weight: Tensor) -> list[Tensor]:
    """(n, k, l), (n, l, m), (m, p) -> (n, k, m), (n, k, p)."""
    calls.append("products")
    out = a @ b
    return [out, out @ weight]


@custom_op("fill_rows", mutates=("x",))
def fill_rows(x: Tensor, y: Tensor) -> Tensor:
    """(n, k), (n) -> (n): the sums of what was there; rows are filled."""
    calls.append("fill_rows")
    sums = x.sum(1)
    x[:] = y[:, None]
    return sums


@custom_op("noisy_rows", tags=RANDOM)
def noisy_rows(x: Tensor) -> Tensor:
    calls.append("noisy_rows")
    return x + torch.rand(x.shape)


@custom_op("count_positive")
def count_positive(x: Tensor) -> Tensor:
    calls.append("count_positive")
    return torch.tensor(float((x > 0).sum()))


@custom_op("total")
def total(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    return x.sum(dim, keepdim)


def backward(ctx, grad):
    (x,) = ctx.saved_tensors
    return grad * 2 * x


@custom_op("square")
def square(x: Tensor) -> Tensor:
    calls.append("square")
    return x * x


square.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]))
A, B, ROW = torch.randn(2, 3), torch.randn(2, 3), torch.randn(3)

# name -> (maker, operator, sample, options of the check)
CASES = {
    "pointwise, keyword-only tensor, two outputs": (pointwise, scale, (A, ROW), {"by": torch.tensor(2.0)}),
    "pointwise, a list": (pointwise, mean_of, ([A, B, ROW], torch.tensor(0.5)), {}),
    "pointwise, no optional tensor": (pointwise, mean_of, ([A, B],), {}),
    "pointwise, writes": (pointwise, add_to, (A, ROW, torch.zeros(2, 3)), {}),
    "pointwise, with gradients": (pointwise, square, (A,), {}),
    "broadcast_all": (broadcast_all, scale, (A, ROW), {"by": torch.rand(2, 1)}),
    "expand_dims, two outputs": (expand_dims, det_and_inv, (torch.randn(3, 3) + 3 * torch.eye(3),), {}),
    "batch_dims, list of outputs": (
        batch_dims(1, shared=("weight",)), products, (torch.randn(4, 2, 3), torch.randn(4, 3, 2), torch.randn(2, 5)), {},
    ),
    "batch_dims that broadcast": (
        batch_dims(1, shared=("weight",)), products, (torch.randn(1, 2, 3), torch.randn(4, 3, 2), torch.randn(2, 5)), {},
    ),
    "batch_dims, writes": (batch_dims(1), fill_rows, (torch.randn(2, 3), torch.randn(2)), {}),
    "sequential": (sequential, count_positive, (A,), {}),
    "reduction": (reduction, total, (A, -1), {}),
}  # fmt: skip


@pytest.fixture
def rule():
    """Enter one rule, and take it out again."""
    made = []

    def enter(maker, op):
        pack = RulePack("vmap_makers")
        pack.family(maker, op)
        register(pack)
        made.append(pack)

    yield enter
    for pack in made:
        unregister(pack.name)


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name, rule):
    maker, op, sample, kwargs = CASES[name]
    rule(maker, op)
    looped = "shared" in name or "batch_dims" in name  # a batched weight runs in the loop, with a warning
    assert check_rule(op, *sample, fallback=looped, **kwargs) > 5


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("sequential", "reduction")])
def test_one_call(name, rule):
    maker, op, sample, kwargs = CASES[name]
    rule(maker, op)
    stack = lambda x: torch.stack([x] * 4) if isinstance(x, Tensor) else x  # noqa: E731
    args = [[stack(t) for t in a] if isinstance(a, list) else stack(a) for a in sample]
    dims = [None if name.startswith("batch_dims, list") and i == 2 else 0 for i in range(len(args))]
    if "broadcast" in name and op is products:
        dims[2] = None
    args = [s if d is None else a for a, s, d in zip(args, sample, dims, strict=True)]
    calls.clear()
    vmap(lambda *a: op(*a, **kwargs) if op is not add_to else (op(*a), a[0])[1], in_dims=tuple(dims))(*args)
    assert len(calls) == 1


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize(
    ("maker", "op", "sample"),
    [(pointwise, jitter, (A, torch.tensor(0.5))), (broadcast_all, jitter, (A, ROW)),
     (expand_dims, noisy_rows, (A,)), (batch_dims(1), noisy_rows, (A,)), (sequential, noisy_rows, (A,))],
)  # fmt: skip
def test_random(maker, op, sample, randomness, rule):
    rule(maker, op)
    assert check_rule(op, *sample, randomness=randomness, nested=False) > 2
    with pytest.raises(RandomnessError):
        vmap(op, in_dims=(0,) + (None,) * (len(sample) - 1))(torch.stack([sample[0]] * 2), *sample[1:])


def test_random_on_what_all_samples_share(rule):
    """Nothing is batched, and every sample draws for itself all the same."""
    rule(pointwise, jitter)
    x, size = torch.zeros(2), torch.ones(())
    out = vmap(lambda _: jitter(x, size), randomness="different")(torch.zeros(3))
    assert out.shape == (3, 2) and out.unique().numel() == 6
    same = vmap(lambda _: jitter(x, size), randomness="same", out_dims=None)(torch.zeros(3))
    assert same.shape == (2,)


def test_a_write_to_what_all_samples_share_is_an_error(rule):
    rule(pointwise, add_to)
    with pytest.raises(InplaceError):
        vmap(lambda y: add_to(A.clone() * 0 + outside, y, outside))(torch.randn(3, 2, 3))


outside = torch.zeros(2, 3)


def test_decompose(rule):
    rule(decompose, torch.ops.aten.hardswish_backward.default)
    assert check_rule(torch.ops.aten.hardswish_backward.default, A, B) > 5
    with pytest.raises(TypeError, match="no decomposition"):
        decompose(square._opoverload)


@pytest.mark.parametrize("maker", [reduction, along_dim])
def test_makers_refuse_what_they_cannot_map(maker):
    with pytest.raises(TypeError, match="neither write nor draw"):
        maker(jitter._opoverload)


def test_batch_dims_are_checked(rule):
    with pytest.raises(ValueError, match="at least one"):
        batch_dims(0)
    rule(batch_dims(2), square)
    with pytest.raises(RuntimeError, match="2 batch dims in front"):
        vmap(square)(torch.randn(3, 4))


def test_a_batched_weight_says_that_it_loops(rule):
    rule(batch_dims(1, shared=("weight",)), products)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vmap(products, in_dims=(None, None, 0))(torch.randn(4, 2, 3), torch.randn(4, 3, 2), torch.randn(3, 2, 5))
    assert ["products" in str(w.message) for w in caught] == [True]
