"""Operators of a third party's, of odd shapes: made with torch.library, given rules by makers, or left to the loop."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vmap_core import RandomnessError, vmap
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
)
from vmap_core.testing import check_rule

SEEDED = (torch.Tag.nondeterministic_seeded,)


@torch.library.custom_op("odd::gate", mutates_args=())
def gate(x: Tensor, beta: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(beta * x)
    return x * s * scale, s


def _gate_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.scale = inputs[2]


def _gate_backward(ctx, g, h):
    x, beta = ctx.saved_tensors
    s = torch.sigmoid(beta * x)
    d = s * (1 - s)
    for_x, for_beta = g * ctx.scale * (s + x * d * beta) + h * d * beta, (g * ctx.scale * x + h) * d * x
    return for_x.sum_to_size(x.shape), for_beta.sum_to_size(beta.shape), None


gate.register_autograd(_gate_backward, setup_context=_gate_context)


@torch.library.custom_op("odd::add_to", mutates_args=("total",))
def add_to(total: Tensor, x: Tensor, *, alpha: float = 1.0) -> None:
    total.add_(x, alpha=alpha)


@torch.library.custom_op("odd::scale_and_count", mutates_args=("x", "count"))
def scale_and_count(x: Tensor, count: Tensor, y: Tensor) -> Tensor:
    x.mul_(y)
    count.add_(1)
    return x.sum(-1)


@torch.library.custom_op("odd::scale_all", mutates_args=("xs",))
def scale_all(xs: list[Tensor], s: float) -> None:
    for x in xs:
        x.mul_(s)


@torch.library.custom_op("odd::jitter", mutates_args=(), tags=SEEDED)
def jitter(x: Tensor, p: float) -> Tensor:
    return x + torch.rand_like(x) * p


@torch.library.custom_op("odd::noise", mutates_args=(), tags=SEEDED)
def noise(shape: Sequence[int]) -> Tensor:
    return torch.randn(shape)


@torch.library.custom_op("odd::unannounced", mutates_args=())
def unannounced(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


@torch.library.custom_op("odd::weighted", mutates_args=())
def weighted(xs: Sequence[Tensor], w: Tensor | None = None) -> Tensor:
    total = sum(xs)
    return total * w if w is not None else total + 0


@torch.library.custom_op("odd::multiples", mutates_args=())
def multiples(x: Tensor, n: int) -> list[Tensor]:
    return [x * i for i in range(n)]


@torch.library.custom_op("odd::total", mutates_args=())
def total(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    return x.sum(dim, keepdim)


@torch.library.custom_op("odd::order", mutates_args=())
def order(x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    values, indices = x.sort(dim)
    return values.clone(), indices.clone()


@torch.library.custom_op("odd::mix", mutates_args=())
def mix(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = torch.einsum("ncl,oc->nol", x, weight)
    return out if bias is None else out + bias[:, None]


@torch.library.custom_op("odd::solve", mutates_args=())
def solve(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    root = torch.linalg.cholesky(a)
    return torch.cholesky_solve(b, root), root.clone()


@torch.library.custom_op("odd::many_kinds", mutates_args=())
def many_kinds(x: Tensor, t: Tensor, k: int, name: str, flags: Sequence[bool], dtype: torch.dtype) -> Tensor:
    return (x * t + k * len(name)).to(dtype) * flags[0]


torch.library.define("odd::named", "(Tensor x, *, Tensor bias, Tensor? mask=None) -> Tensor")
torch.library.define("odd::maybe_add", "(Tensor x, Tensor(a!)? acc=None, *, Scalar s=2) -> Tensor")
torch.library.define("odd::composed", "(Tensor x, Tensor y) -> Tensor")


@torch.library.impl("odd::named", "CompositeExplicitAutograd")
def _named(x, *, bias, mask=None):
    y = x + bias
    return y if mask is None else y * mask


@torch.library.impl("odd::maybe_add", "CompositeExplicitAutograd")
def _maybe_add(x, acc=None, *, s=2):
    if acc is not None:
        acc.add_(x)
    return x * s


@torch.library.impl("odd::composed", "CompositeImplicitAutograd")
def _composed(x, y):
    return (x @ y).relu()


ODD = torch.ops.odd


@pytest.fixture(autouse=True, scope="module")
def rules():
    pack = RulePack("odd")
    pack.family(pointwise, gate, add_to, ODD.named.default, scale_all, ODD.maybe_add.default)
    pack.family(broadcast_all, weighted, many_kinds)
    pack.family(expand_dims, jitter, solve)
    pack.family(reduction, total)
    pack.family(along_dim, order)
    pack.family(batch_dims(1, shared=("weight", "bias")), mix)
    pack.family(batch_dims(1), scale_and_count)
    pack.family(sequential, multiples, noise)
    pack.family(decompose, ODD.composed.default)
    register(pack)
    yield
    unregister("odd")


X, V, S = torch.randn(3, 4), torch.randn(4), torch.tensor(0.7)

CALLS = {
    "two outputs, a gradient": (gate, X, V),
    "a scalar": (gate, X, S),
    "by keyword": (lambda x, b: gate(x, beta=b, scale=2.0), V, X),
    "two dtypes": (gate, X.double(), S),
    "writes": (add_to, X, V),
    "writes, with an option": (lambda x, y: add_to(x, y, alpha=2.0), X, V),
    "writes two, returns another": (scale_and_count, X, torch.zeros(3), X + 1),
    "writes to a list": (lambda x, y: scale_all([x, y], 2.0), X, V),
    "a list and none": (lambda x, y, z: weighted([x, y, z]), X, V, S),
    "a list and one": (lambda x, y, w: weighted([x, y], w), X, torch.ones(4, dtype=torch.long), torch.randn(3, 1)),
    "a list of outputs": (lambda x: multiples(x, 3), X),
    "dim": (lambda x: total(x, 0), X),
    "negative dim": (lambda x: total(x, -1, True), X),
    "dim of a scalar": (lambda x: total(x, 0), S),
    "dim by keyword": (lambda x: total(x, dim=1, keepdim=True), X),
    "along a dim": (lambda x: order(x, 0), X),
    "along the dim of a scalar": (order, S),
    "leading dims": (solve, torch.eye(3) * 2 + 0.1, torch.randn(3, 2)),
    "arguments of many kinds": (lambda x, t: many_kinds(x, t, 2, "abc", [True], torch.float64), X, V),
    "tensors by keyword": (lambda x, b, m: ODD.named(x, bias=b, mask=m), X, V, X > 0),
    "an optional tensor by keyword": (lambda x, b: ODD.named(x, bias=b), X, V),
    "writes to an argument left out": (ODD.maybe_add, X),
    "writes to None": (lambda x: ODD.maybe_add.default(x, None, s=3), X),
    "writes and returns": (lambda x, a: ODD.maybe_add(x, a, s=3), X, torch.zeros(3, 4)),
    "writes by keyword": (lambda x, a: ODD.maybe_add(x, acc=a), X, torch.zeros(3, 4)),
    "composed of others": (ODD.composed, X, torch.randn(4, 2)),
}


@pytest.mark.parametrize("name", CALLS)
def test_equal_to_the_loop(name):
    function, *sample = CALLS[name]
    assert check_rule(function, *sample)


def test_shared_weights():
    x, weight, bias = torch.randn(2, 3, 5), torch.randn(4, 3), torch.randn(4)
    assert check_rule(mix, x, weight, bias, in_dims=(0, None, None))
    assert check_rule(mix, x, weight, bias, fallback=True)
    with pytest.raises(AssertionError, match="no batching rule"):
        check_rule(mix, x, weight, bias)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_random_numbers(randomness):
    assert check_rule(lambda x: jitter(x, 0.5), X, randomness=randomness)
    assert check_rule(lambda x: noise([3]) + x, X[:, 0], randomness=randomness)
    with pytest.raises(RandomnessError):
        vmap(lambda x: jitter(x, 0.5))(X)


@pytest.mark.filterwarnings("ignore::vmap_core.FallbackWarning")
def test_random_numbers_that_no_tag_announces():
    """The operator has drawn when it is found out: an error, but where it does what was asked for."""
    assert vmap(unannounced, randomness="different")(X).shape == X.shape
    for randomness in ("error", "same"):
        with pytest.raises(RandomnessError, match="random"):
            vmap(unannounced, randomness=randomness)(X)
    shared = lambda x: unannounced(torch.zeros(4)) + x * 0  # noqa: E731
    out = vmap(shared, randomness="same")(X)
    assert torch.equal(out[0], out[1])
    for randomness in ("error", "different"):
        with pytest.raises(RandomnessError, match="random"):
            vmap(shared, randomness=randomness)(X)


def test_on_tensors_that_all_samples_share():
    """An operator that writes and returns something else, without a batched argument."""

    def function(x):
        acc = torch.ones(4)
        out = ODD.maybe_add(torch.full((4,), 5.0), acc)
        return out + x, acc

    out, acc = vmap(function)(torch.zeros(2, 4))
    assert torch.equal(out, torch.full((2, 4), 10.0)) and torch.equal(acc, torch.full((2, 4), 6.0))


def test_a_wrong_rule_is_found():
    @torch.library.custom_op("odd::running", mutates_args=())
    def running(x: Tensor) -> Tensor:
        return x.cumsum(0)

    pack = RulePack("odd_wrong")
    pack.family(pointwise, running)
    register(pack)
    try:
        with pytest.raises(AssertionError, match=r"running.*in_dims \[\(0,\)\].*not close"):
            check_rule(running, X)
    finally:
        unregister("odd_wrong")
