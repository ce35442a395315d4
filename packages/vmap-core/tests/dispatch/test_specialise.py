"""Short cuts give what the general way gives, and are taken."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vmap_core import vmap
from vmap_core.dispatch import planner, steps, ways
from vmap_core.extend import BatchedTensor
from vmap_core.rulekit.packs import current_table, table_in_force
from vmap_core.rulekit.rule import Table

W, V = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

CALLS = {
    "one tensor": lambda x: torch.sin(x),
    "a number": lambda x: x * 2 + 0.5,
    "two": lambda x: x * x,
    "two, of other ranks": lambda x: x - x.sum(),
    "two, of other ranks, the second longer": lambda x: x.sum() - x[None, None],
    "three": lambda x: torch.addcmul(x, x, x, value=3),
    "shared": lambda x: x + V,
    "shared, first": lambda x: torch.sub(V, x, alpha=2),
    "named": lambda x: torch.add(input=x, other=x, alpha=2),
    "named, out of order": lambda x: torch.sub(other=2 * x, input=x),
    "a bound by name": lambda x: torch.clamp(x, max=0.5),
    "bounds": lambda x: torch.clamp(x, -0.5, 0.5),
    "a condition": lambda x: torch.where(x > 0, x, 0.0),
    "keepdim by name": lambda x: x.sum(dim=0, keepdim=True),
    "axis": lambda x: x.mean(axis=0),
    "several dims": lambda x: x[None].sum(dim=[0, 1]),
    "varargs": lambda x: x.reshape(2, 2).permute(1, 0),
    "sizes in a list": lambda x: x.reshape([2, 2]).permute([1, 0]),
    "sizes in a tuple": lambda x: x.reshape((2, 2)).permute((1, 0)),
    "sizes by name": lambda x: torch.reshape(x, shape=(2, 2)),
    "a default between": lambda x: x.narrow(dim=0, start=1, length=2),
    "a list": lambda x: torch.cat([x, x, 2 * x]),
    "a list and a dim": lambda x: torch.stack([x, x], 1),
    "a list and a dim by name": lambda x: torch.stack([x, x], dim=1),
    "a tuple": lambda x: torch.cat((x, x), 0),
    "a list with a shared one": lambda x: torch.cat([x, V]),
    "products": lambda x: W @ x + x @ W + F.linear(x, W, V),
    "in place": lambda x: x.clone().add_(x).mul_(2).sub_(x),
    "in place, of other ranks": lambda x: x.clone().sub_(x.sum()),
    "operators in place": lambda x: _in_place(x.clone()),
    "the same tensor": lambda x: x.to(x.dtype).contiguous(),
    "several results": lambda x: torch.sort(x, descending=True)[0],
}


def _in_place(x: Tensor) -> Tensor:
    x += x
    x *= 0.5
    return x


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("in_dim", [0, -1])
def test_as_the_general_way_and_as_the_loop(name: str, in_dim: int, monkeypatch: pytest.MonkeyPatch):
    f, x = CALLS[name], torch.randn(4, 4, dtype=torch.float64)
    expected = torch.stack([f(row) for row in x.unbind(in_dim)])
    with table_in_force(Table(current_table().packs)):
        for _ in range(2):  # the first call plans
            torch.testing.assert_close(vmap(f, in_dims=in_dim)(x), expected)
        nested = vmap(vmap(f, in_dims=in_dim))(torch.stack([x, x + 1]))
        torch.testing.assert_close(nested[0], expected)
    monkeypatch.setattr(planner, "specialise", lambda rule, op, arrange, args, kwargs, general: general)
    with table_in_force(Table(current_table().packs)):
        torch.testing.assert_close(vmap(f, in_dims=in_dim)(x), expected)


LONG = {"the same tensor", "several results", "a list with a shared one", "in place, of other ranks"}


@pytest.mark.parametrize("name", sorted(set(CALLS) - LONG))
def test_the_last_call_is_short(name: str, monkeypatch: pytest.MonkeyPatch):
    """With the general ways of operators shut after the first call, the same call still runs."""
    f, x, shut = CALLS[name], torch.randn(4, 4, dtype=torch.float64), False
    native = planner.specialise

    def watched(rule, op, arrange, args, kwargs, general):
        def shuttable(level, args, kwargs):
            batched = any(type(a) is BatchedTensor and a._bdim is not None for a in args)
            assert not (shut and batched) or op is None or rule.may_return_self, op
            return general(level, args, kwargs)

        return native(rule, op, arrange, args, kwargs, shuttable)

    monkeypatch.setattr(planner, "specialise", watched)
    with table_in_force(Table(current_table().packs)):
        expected = vmap(f)(x)
        shut = True
        torch.testing.assert_close(vmap(f)(x), expected)


def test_many_places_are_asked_for_once(monkeypatch: pytest.MonkeyPatch):
    asked = 0
    native = steps.learn

    def counted(*args):
        nonlocal asked
        asked += 1
        return native(*args)

    monkeypatch.setattr(steps, "learn", counted)
    x = torch.arange(5000.0).reshape(2, 2500)
    with table_in_force(Table(current_table().packs)):
        for _ in range(2):
            out = vmap(lambda x: torch.cat([x.narrow(0, i, 1) for i in range(2500)]))(x)
            assert torch.equal(out, x)
    assert asked == 2500


def test_one_compilation_serves_all_operators_of_a_kind():
    with table_in_force(Table(current_table().packs)):
        vmap(lambda x: torch.sin(x))(torch.ones(2))
        before = ways._compiled.cache_info().misses
        vmap(lambda x: torch.cos(x) + torch.exp(x).tanh() * torch.sqrt(x))(torch.ones(2))
        assert ways._compiled.cache_info().misses <= before + 1  # the pair


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


def test_what_a_named_tuple_holds_decides_as_in_a_list():
    x, shared = torch.arange(6.0).reshape(2, 3), torch.ones(3)
    with table_in_force(Table(current_table().packs)):
        for pair in (lambda x: Pair(x, x), lambda x: Pair(shared, x), lambda x: Pair(x, shared), lambda x: Pair(x, x)):
            for join in (torch.cat, torch.stack, torch.hstack):
                assert torch.equal(vmap(lambda x, f=join, p=pair: f(p(x)))(x), torch.stack([join(pair(r)) for r in x]))
