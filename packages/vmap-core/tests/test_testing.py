"""check_rule accepts right rules and names what is wrong with wrong ones."""

import pytest
import torch

from vmap_core import vmap
from vmap_core.extend import RulePack, register, unregister
from vmap_core.testing import batched, check_rule, choices, loop, nested_choices, rows, strongest


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (torch.dot, (torch.randn(3), torch.randn(3))),
        (torch.sort, (torch.randn(3, 4),)),
        (torch.cat, ([torch.randn(2, 3), torch.randn(1, 3)],)),
        (torch.linalg.cholesky, (torch.eye(3) + 1,)),
        (torch.gather, (torch.randn(2, 3), 1, torch.tensor([[0, 2], [1, 1]]))),
        (lambda x, y: x.add_(y), (torch.randn(3, 4), torch.randn(4))),
    ],
)
def test_right_rules_pass(op, args):
    assert check_rule(op, *args) > 4


@pytest.fixture
def operator():
    """Yield a function that gives a new operator of two vectors a rule, for one test."""
    library = torch.library.Library("check_rule_test", "DEF")
    library.define("scale(Tensor x, Tensor y) -> Tensor")
    library.impl("scale", lambda x, y: x * y.sum(), "CompositeExplicitAutograd")
    op = torch.ops.check_rule_test.scale.default
    packs = []

    def with_rule(rule):
        pack = RulePack("check_rule_test")
        pack.rule(op)(rule)
        register(pack)
        packs.append(pack)
        return op

    yield with_rule
    for pack in packs:
        unregister(pack.name)
    library._destroy()


def test_a_right_rule_of_an_operator_passes(operator):
    def rule(info, in_dims, x, y):
        x, y = (t if d is None else t.movedim(d, 0) for t, d in zip((x, y), in_dims, strict=True))
        return x * y.sum(-1, keepdim=in_dims[1] is not None), 0

    check_rule(operator(rule), torch.randn(3), torch.randn(4), gradients=False)


def test_a_rule_that_mixes_rows_is_found(operator):
    def rule(info, in_dims, x, y):
        return x * y.sum(), in_dims[0]

    with pytest.raises(AssertionError, match=r"in_dims \[\(0, 0\)\], physical shapes \[\(3, 3\), \(3, 4\)\]: output 0"):
        check_rule(operator(rule), torch.randn(3), torch.randn(4), gradients=False)


def test_a_rule_that_ignores_in_dims_is_found(operator):
    def rule(info, in_dims, x, y):
        return x * y.sum(-1, keepdim=True), 0

    with pytest.raises((AssertionError, RuntimeError)) as caught:
        check_rule(operator(rule), torch.randn(3), torch.randn(4), gradients=False)
    assert "in_dims" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_the_slow_loop_is_an_error_unless_allowed():
    x = torch.randn(4)
    library = torch.library.Library("check_rule_slow", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    op = torch.ops.check_rule_slow.twice.default
    with pytest.raises(AssertionError, match=r"check_rule_slow\.twice"):
        check_rule(op, x)
    assert check_rule(op, x, fallback=True, gradients=False) > 4
    library._destroy()


def test_given_in_dims():
    assert check_rule(torch.mm, torch.randn(2, 3), torch.randn(3, 4), in_dims=(-1, None), nested=False) == 3


@pytest.mark.parametrize(
    "x", [torch.randn(3, 3), torch.arange(4), torch.tensor(3), torch.tensor(True), torch.tensor(2.0)]
)
def test_rows_differ(x):
    first, second, third = rows(x, 3)
    assert first.equal(x) and first.dtype == second.dtype == third.dtype
    assert not first.equal(second) and not second.equal(third)


def test_rows_are_gentler_where_the_operator_is_choosy():
    def wants_order(x):
        if not (x.diff() >= 0).all():
            raise ValueError
        return x

    assert strongest(wants_order, [torch.arange(1.0, 4.0)]) == "scaled"
    assert strongest(torch.linalg.cholesky, [torch.eye(3)]) == "rolled"


def test_the_loop_of_nested_choices():
    tensors = [torch.randn(2, 3), torch.randn(3)]
    assert (0, None) in choices([2, 1]) and (2, 1) in choices([2, 1])
    for levels in nested_choices([2, 1]):
        physical = batched(tensors, levels, (3, 2), "rolled")
        inner = vmap(torch.mv, in_dims=levels[1])
        expected = loop(lambda a, b: [torch.mv(a, b)], physical, levels)[0]
        torch.testing.assert_close(vmap(inner, in_dims=levels[0])(*physical), expected)
