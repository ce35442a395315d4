"""Rules of others: what they return is checked, what they raise says whose they are."""

import contextlib

import numpy as np
import pytest
import torch
from torch import Tensor

from vmap_core import RuleError, VmapError, custom_vmap, vmap
from vmap_core.extend import Rule, RulePack, by_shape, pointwise, register, unregister
from vmap_core.rulekit import packs
from vmap_core.testing import check_rule

X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


@torch.library.custom_op("checked::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return x * 2


@torch.library.custom_op("checked::both", mutates_args=())
def both(x: Tensor) -> tuple[Tensor, Tensor]:
    return x * 2, x * 3


@contextlib.contextmanager
def pack_with(op, rule, **options):
    pack = RulePack("acme")
    pack.add(op, rule, **options)
    register(pack)
    try:
        yield
    finally:
        unregister("acme")


ONE = {  # what a rule makes of x, and what the error says
    "a bare tensor": (lambda x: x * 2, "returned a tensor of shape (3, 2), not a pair"),
    "a triple": (lambda x: (x, 0, 0), "returned a tuple of 3, not a pair"),
    "nothing": (lambda x: None, "returned None, not a pair"),
    "a float": (lambda x: (x, 0.0), "out_dims=0.0 for a tensor of shape (3, 2): neither an int nor None"),
    "a text": (lambda x: (x, "0"), "out_dims='0'"),
    "a bool": (lambda x: (x, True), "out_dims=True"),
    "a tensor as dim": (lambda x: (x, torch.tensor(0)), "out_dims=tensor(0)"),
    "no such dim": (lambda x: (x, 2), "out_dims=2 for a tensor of shape (3, 2): there is no such dim"),
    "no such dim from behind": (lambda x: (x, -3), "out_dims=-3"),
    "no dim": (lambda x: (x.sum(), 0), "out_dims=0 for a tensor of shape (): there is no such dim"),
    "another size": (lambda x: (torch.cat([x, x]), 0), "shape (6, 2): that dim is not of the batch size"),
    "another dim": (lambda x: (x, 1), "out_dims=1 for a tensor of shape (3, 2): that dim is not of the batch size"),
    "dims for one": (lambda x: (x, (0,)), "out_dims=(0,)"),
}
MORE = {  # likewise, where there are two outputs
    "a dim too few": (lambda x: ((x, x), (0,)), "out_dims=(0,), which do not fit its output: a tuple of 2"),
    "a dim too many": (lambda x: ((x, x), (0, 0, 0)), "out_dims=(0, 0, 0)"),
    "dims by name": (lambda x: ({"a": x}, {"b": 0}), "out_dims={'b': 0}"),
    "a wrong one inside": (lambda x: ([x, x], [0, 1]), "out_dims=1"),
}
OUTPUTS = {  # where the schema tells how many there are
    "one instead of two": (both, lambda x: (x, 0), "a tensor of shape (3, 2) as output, where the operator has 2 outputs"),
    "three instead of two": (both, lambda x: ((x, x, x), 0), "a tuple of 3 as output"),
    "a tuple instead of one": (double, lambda x: ((x,), (0,)), "a tuple of 1 as output, where the operator has a tensor"),
}  # fmt: skip


def refused(mapped, *texts):
    with pytest.raises(RuleError) as info:
        mapped(X)
    assert all(text in str(info.value) for text in (*texts, __file__, "Expected: (output, out_dims)", "here is 3"))
    assert isinstance(info.value, VmapError) and not hasattr(info.value, "__notes__")


@pytest.mark.parametrize("name", [*ONE, *OUTPUTS])
def test_a_rule_of_a_pack(name):
    op, result, text = OUTPUTS[name] if name in OUTPUTS else (double, *ONE[name])

    def my_rule(info, in_dims, x):
        return result(x)

    with pack_with(op, my_rule):
        mapped = vmap(op)
        for _ in range(2):
            refused(mapped, text, "my_rule", f"of {op._opoverload},", "in pack 'acme'")


@pytest.mark.parametrize("name", [*ONE, *MORE])
def test_a_rule_of_custom_vmap(name):
    f = custom_vmap(lambda x: x * 2)
    f.def_vmap(lambda info, in_dims, x: {**ONE, **MORE}[name][0](x))
    refused(vmap(f), {**ONE, **MORE}[name][1], "of <lambda>")


@pytest.mark.parametrize("name", ONE)
def test_the_vmap_of_a_function(name):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def vmap(info, in_dims, x):
            return ONE[name][0](x)

    refused(vmap(Double.apply), ONE[name][1], "of Double.vmap")


@pytest.mark.parametrize("name", ["a bare tensor", "a bool", "another size"])
def test_a_rule_registered_with_pytorch(name):
    op = torch.library.custom_op(
        f"checked::registered_{len(name)}", lambda x: x * 2, mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    op.register_vmap(lambda info, in_dims, x: ONE[name][0](x))
    refused(vmap(op), ONE[name][1], "in pack 'torch.library'")


def test_what_is_found_in_short_cuts():
    """A rule that is asked for its operation, one that is never run: the first call of a kind is checked."""
    with pack_with(double, by_shape(lambda info, in_dims, x: (x.sum(0), in_dims[0]))):
        refused(vmap(double), "shape (2,): that dim is not of the batch size")
        refused(vmap(double), "shape (2,)")

    @torch.library.custom_op("checked::total", mutates_args=())
    def total(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(0)

    with pack_with(total, pointwise(total._opoverload)):
        for _ in range(2):
            refused(vmap(lambda x: total(x, x)), "shape (2,): that dim is not of the batch size", "pointwise")


@pytest.mark.parametrize("dim", [np.int64(1), -1, np.int32(-1), 1, None])
def test_indices_of_other_types_and_from_behind(dim):
    def rule(info, in_dims, x):
        return (x.mT.contiguous() * 2, dim) if dim is not None else (x[0] * 2, None)

    expected = X * 2 if dim is not None else (X[0] * 2).expand(3, 2)
    with pack_with(double, rule):
        torch.testing.assert_close(vmap(lambda x: double(x) + x)(X), expected + X)
    f = custom_vmap(lambda x: x * 2)
    f.def_vmap(lambda info, in_dims, x: ((rule(info, in_dims, x)[0],), [dim]))
    torch.testing.assert_close(vmap(lambda x: f(x)[0] + x)(X), expected + X)


class Odd(Exception):
    pass


@pytest.mark.parametrize("kind", ["physical", "logical"])
def test_what_a_rule_raises_says_whose_it_is(kind):
    raised = Odd("as it was")

    def my_rule(info, *args):
        raise raised

    with pack_with(double, my_rule, kind=kind):
        for _ in range(2):
            with pytest.raises(Odd) as info:
                vmap(vmap(double))(X)
            assert info.value is raised and str(raised) == "as it was"
        (line,) = raised.__notes__
        assert "my_rule (" in line and __file__ in line and "checked.double.default, in pack 'acme'" in line
    f = custom_vmap(lambda x: x)
    f.def_vmap(my_rule)
    raised.__notes__.clear()
    with pytest.raises(Odd):
        vmap(f)(X)
    assert len(raised.__notes__) == 1


def test_users_errors_get_no_notes():
    for call in (lambda x: x @ torch.ones(5), lambda x: torch.add(x, torch.ones(5)), lambda x: x.view(7)):
        with pytest.raises(RuntimeError) as info:
            vmap(call)(X)
        assert not hasattr(info.value, "__notes__")


def test_the_rules_of_this_project_are_checked_on_demand(monkeypatch):
    """By check_rule, and under VMAP_CHECK=1."""
    op = torch.ops.aten.trunc.default
    wrong = RulePack("core.wrong")
    wrong.add(op, Rule(lambda info, in_dims, x: (x.trunc(), True)), override=True)
    register(wrong)
    try:
        assert torch.equal(vmap(torch.trunc)(X)[0], X.trunc())  # of three unmapped rows: wrong, which nobody looks at
        with pytest.raises(RuleError, match="in pack 'core.wrong', returned out_dims=True"):
            check_rule(torch.trunc, torch.randn(3))
        monkeypatch.setattr(packs, "CHECKS", True)
        packs._registry.forget_tables()
        refused(vmap(torch.trunc), "out_dims=True")
    finally:
        unregister("core.wrong")
