"""`check` finds what differs from the loop: the sample, the operation, its rule."""

from pathlib import Path

import pytest
import torch

from vmap_core import CheckReport, check, vmap
from vmap_core.extend import RulePack, register, unregister

library = torch.library.Library("vmap_check_test", "DEF")
for name in ("twice", "third_off", "wrong_dtype", "careless_"):
    written = "(a!)" if name.endswith("_") else ""
    library.define(f"{name}(Tensor{written} x) -> {'()' if written else 'Tensor'}")
    body = (lambda x: None) if written else (lambda x: x * 2)
    library.impl(name, body, "CompositeExplicitAutograd")
ops = torch.ops.vmap_check_test


@pytest.fixture
def wrong_rules():
    """Rules with mistakes in them."""
    pack = RulePack("wrong")

    @pack.rule(ops.twice.default)
    def twice(info, in_dims, x):
        return x * 2, in_dims[0]

    @pack.rule(ops.third_off.default)
    def third_off(info, in_dims, x):
        out = x * 2
        out.select(in_dims[0], 2).add_(1)
        return out, in_dims[0]

    @pack.rule(ops.wrong_dtype.default)
    def wrong_dtype(info, in_dims, x):
        return (x * 2).double(), in_dims[0]

    @pack.rule(ops.careless_.default)
    def careless_(info, in_dims, x):
        x.add_(1)
        return None, None

    register(pack)
    yield
    unregister("wrong")


def test_equal():
    x, w = torch.randn(5, 3), torch.randn(3, 3, requires_grad=True)
    report = check(vmap(lambda x, w: {"y": (w @ x).tanh(), "n": 3}, in_dims=(0, None), out_dims={"y": 1, "n": None}))(
        x, w
    )
    assert isinstance(report, CheckReport) and report and str(report).endswith("equals the loop over the batch")
    assert check(vmap(vmap(torch.dot)))(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    assert check(vmap(lambda x, *, y: x * y, kw_in_dims={"y": 1}))(torch.randn(3), y=torch.randn(2, 3))
    assert check(vmap(lambda: torch.ones(2), axis_size=3))()
    assert check(vmap(lambda d: d["a"][0] + 1))({"a": [torch.randn(3)]})


def test_the_first_operation_that_differs(wrong_rules):
    def f(x):
        y = ops.twice(x.sin())
        z = ops.third_off(y)  # here
        return z.cos().sum()

    report = check(vmap(f))(torch.randn(4, 3))
    assert not report and report.sample == 2
    assert report.operation.name.endswith("third_off") and report.operation.pack == "wrong"
    path, line = report.operation.location.rsplit(":", 1)
    assert "# here" in Path(path).read_text().splitlines()[int(line) - 1]
    assert "third_off" in str(report) and "sample 2" in str(report)


def test_it_is_found_inside_an_inner_vmap(wrong_rules):
    """The inner level maps a right operator; the outer one meets the wrong rule in what the inner one calls."""
    report = check(vmap(lambda x: vmap(torch.sin)(x) + ops.third_off(x)))(torch.randn(4, 3))
    assert report.operation.name.endswith("third_off")


def test_dtypes_count(wrong_rules):
    report = check(vmap(lambda x: ops.wrong_dtype(x)))(torch.randn(4, 3))
    assert not report and "dtype torch.float64, expected torch.float32" in report.what


def test_writes_to_arguments_count(wrong_rules):
    def f(x):
        ops.careless_(x)
        return torch.ones(())

    x = torch.zeros(4, 3)
    report = check(vmap(f))(x)
    assert not report and "tensor 0 of the arguments" in report.what
    assert not x.any(), "the arguments themselves stay as they are"
    assert check(vmap(lambda x: x.add_(1)))(x) and not x.any()


class Twice(torch.autograd.Function):
    """Its rule has the right value, and another gradient."""

    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g * 2

    @staticmethod
    def vmap(info, in_dims, x):
        return x * 2 + (x - x.detach()), in_dims[0]


def test_gradients_count():
    x = torch.randn(4, 3, requires_grad=True)
    assert check(vmap(lambda x: torch.sin(x) + x + x))(x)
    report = check(vmap(Twice.apply))(x)
    assert not report and "gradient of tensor 0" in report.what


def test_random_functions():
    x = torch.zeros(4)
    noisy = lambda x: x + torch.rand(2)  # noqa: E731
    different = check(vmap(noisy, randomness="different"))(x)
    assert different and not different.values and "random" in str(different)
    same = check(vmap(noisy, randomness="same"))(x)
    assert same and same.values
    assert check(vmap(torch.sin, randomness="different"))(x).values, "nothing was drawn"


def test_what_the_loop_raises_is_told():
    pack = RulePack("too_kind")
    pack.add(ops.twice.default, lambda info, in_dims, x: (x * 2, in_dims[0]))
    library.define("picky(Tensor x) -> Tensor")

    def picky(x):
        if x.sum() > 2:
            raise ValueError("too much")
        return x * 2

    library.impl("picky", picky, "CompositeExplicitAutograd")
    pack.add(ops.picky.default, lambda info, in_dims, x: (x * 2, in_dims[0]))
    register(pack)
    try:
        report = check(vmap(lambda x: ops.picky(x)))(torch.tensor([[0.0, 1.0], [3.0, 1.0]]))
        assert not report and report.sample == 1 and "too much" in report.what
    finally:
        unregister("too_kind")


def test_other_functions_are_refused():
    with pytest.raises(TypeError, match="no function that vmap returned"):
        check(torch.sin)
