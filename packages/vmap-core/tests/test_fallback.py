"""The loop: right for every operation, never silent unless asked to be."""

import warnings

import pytest
import torch

from vmap_core import FallbackError, FallbackWarning, UnsupportedError, fallback_policy, set_fallback_policy, vmap
from vmap_core.extend import loop
from vmap_core.levels.level import Level
from vmap_core.rulekit.packs import current_table

X = torch.randn(3, 4)

library = torch.library.Library("vmap_fallback_test", "DEF")
library.define("two(Tensor x, Tensor? y=None) -> (Tensor, Tensor)")
library.define("touch(Tensor(a!) x, Tensor y) -> ()")
library.define("window(Tensor(a) x) -> Tensor(a)")
library.impl("two", lambda x, y=None: (x.sum() if y is None else x.dot(y), x.cumsum(0)), "CompositeExplicitAutograd")
library.impl("touch", lambda x, y: x.add_(y) is None or None, "CPU")
library.impl("window", lambda x: x[1:], "CPU")
ops = torch.ops.vmap_fallback_test


def touch(x, y):
    """Write to the first argument, return nothing."""
    ops.touch(x, y)
    return x


def test_it_warns_with_the_operator_and_the_users_line():
    with pytest.warns(FallbackWarning) as caught:
        vmap(lambda x: ops.two(x)[0])(X)
    warning = caught[0]
    assert warning.message.op is ops.two.default
    assert warning.filename == __file__ and "two" in str(warning.message)


def test_pythons_filters_decide_how_often():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            vmap(lambda x: ops.two(x)[0])(X)
    assert len(caught) == 1


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.filterwarnings("ignore::vmap_core.FallbackWarning")
def test_several_outputs_and_sizes(size):
    x, y = torch.randn(4, size), torch.randn(size, 4)
    total, sums = vmap(ops.two, in_dims=(1, 0))(x, y)
    torch.testing.assert_close(total, (x.t() * y).sum(1))
    torch.testing.assert_close(sums, x.t().cumsum(1))


@pytest.mark.filterwarnings("ignore::vmap_core.FallbackWarning")
def test_a_mutating_operator_writes_through():
    x = X.clone()
    out = vmap(touch)(x, X)
    torch.testing.assert_close(x, 2 * X)
    assert out.data_ptr() == x.data_ptr()
    made = vmap(lambda y: touch(torch.zeros(4), y))(X)
    torch.testing.assert_close(made, X)


def test_a_view_without_a_rule_is_an_error():
    with pytest.raises(UnsupportedError, match="returns a view"):
        vmap(ops.window)(X)


def test_gradients_flow_through_the_loop():
    @torch.library.custom_op("vmap_fallback_test::square", mutates_args=())
    def square(x: torch.Tensor) -> torch.Tensor:
        return x * x

    square.register_autograd(
        lambda ctx, grad: grad * 2 * ctx.saved_tensors[0],
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    x = X.clone().requires_grad_()
    with fallback_policy("silent"):
        vmap(square)(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * X)


def test_policies():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fallback_policy("silent"):
            vmap(ops.two)(X)
        with fallback_policy("error"), pytest.raises(FallbackError, match="two"):
            vmap(ops.two)(X)
        set_fallback_policy("error")
        try:
            with pytest.raises(FallbackError):
                vmap(ops.two)(X)
        finally:
            set_fallback_policy("warn")
        with pytest.raises(FallbackWarning):
            vmap(ops.two)(X)
    with pytest.raises(ValueError, match="policy"):
        set_fallback_policy("loud")


def test_a_loop_inside_a_rule_warns_too():
    level = Level(3, "error", current_table())
    with pytest.warns(FallbackWarning):
        out, bdim = loop(level, torch.sin, (0,), X)
    assert bdim == 0 and torch.equal(out, X.sin())


def test_rules_given_to_pytorch_are_honoured():
    @torch.library.custom_op("vmap_fallback_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    calls = []

    @double.register_vmap
    def double_vmap(info, in_dims, x):
        calls.append((info.batch_size, in_dims))
        return double(x), in_dims[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = vmap(double, in_dims=1)(X)
    assert torch.equal(out, X.t() * 2) and calls == [(4, (1,))]


def test_rules_given_to_pytorch_by_name_are_honoured():
    library.define("triple(Tensor x) -> Tensor")
    library.impl("triple", lambda x: x * 3, "CPU")

    @torch.library.register_vmap("vmap_fallback_test::triple")
    def triple_vmap(info, in_dims, x):
        return ops.triple(x), in_dims[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(vmap(ops.triple)(X), X * 3)
