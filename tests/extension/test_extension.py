"""What a pybind11 extension gets of the tensors of a mapped function: what the loop would give, or an error."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.autograd import Function

from tests.extension.build import extension, why_not
from tests.extension.calls import CALLS, KEEP, LIMITS, OWN_WORDS, call, outcome
from vmap_core import EscapedTensorError, FallbackWarning, UnsupportedError, VmapError, vmap
from vmap_core.levels.head import SAFE

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"the extension cannot be compiled: {why_not()}")

X = torch.arange(12.0).reshape(3, 4) + 1


@pytest.fixture(scope="module")
def cpp():
    return extension()


@pytest.mark.parametrize("name", CALLS)
def test_a_batched_tensor_is_refused(cpp, name):
    if name in LIMITS:
        assert [vmap(lambda x: torch.tensor(call(cpp, name, x) == LIMITS[name]))(X).tolist()] == [[True] * 3]
    elif name == "call_back_with_object":
        torch.testing.assert_close(vmap(lambda x: call(cpp, name, x))(X), X * 3)
    elif name in ("identity", "call_back") and SAFE is not None:
        torch.testing.assert_close(vmap(lambda x: call(cpp, name, x))(X), X if name == "identity" else X * 3)
    elif name in OWN_WORDS:
        with pytest.raises((RuntimeError, ValueError, IndexError, SystemError), match=OWN_WORDS[name]):
            vmap(lambda x: (call(cpp, name, x), x)[1])(X)
    elif name in ("identity", "call_back"):  # Python gets what refuses; the level does not see it come
        with pytest.raises(VmapError, match=r"C\+\+ has\s+handed it to Python|asked aten::"):
            vmap(lambda x: call(cpp, name, x) + 1)(X)
    else:
        with pytest.raises(
            UnsupportedError, match=r"C\+\+ asked (aten|prim)::\w+ .*calls.py:\d+, in vmap of '<lambda>'"
        ):
            vmap(lambda x: (call(cpp, name, x), x)[1])(X)
    assert torch.equal(vmap(lambda x: x + 1)(X), X + 1)


@pytest.mark.parametrize("name", CALLS)
def test_one_that_was_made_inside_is_a_tensor(cpp, name):
    seen = []

    def f(x):
        seen.append(outcome(cpp, name, torch.arange(4.0) + 1))
        return vmap(lambda y: (seen.append(outcome(cpp, name, torch.arange(4.0) + 1)), y)[1])(x)

    vmap(f)(X)
    expected = outcome(cpp, name, torch.arange(4.0) + 1)
    for got in seen:
        fields = (*LIMITS, "const_data_ptr", "nbytes", "with_options")
        if SAFE is not None and (name in fields or isinstance(got, str)):
            continue  # a Tensor subclass: it computes, and has neither data at hand nor a dtype of its own
        if isinstance(expected, str):
            assert got == expected
        else:
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", KEEP)
def test_what_cpp_keeps(cpp, name):
    """It may outlive its vmap, be used then, and be let go, with the garbage collector at any time."""

    def f(x):
        call(cpp, name, x)
        gc.collect(0)
        made = torch.arange(4.0)
        call(cpp, name, made)
        return x + made

    for _ in range(50):
        vmap(f)(X)
    gc.collect()
    assert cpp.number_kept() == 100
    torch.testing.assert_close(cpp.use_kept(), torch.arange(4.0) + 1)
    vmap(lambda x: (call(cpp, name, x), x)[1])(X)
    with pytest.raises(EscapedTensorError, match=r"aten::\w+ was called from C\+\+"):
        cpp.use_kept()
    with pytest.raises(UnsupportedError):
        vmap(lambda x: x + cpp.use_kept())(X)
    cpp.drop()
    gc.collect()
    assert cpp.number_kept() == 0
    torch.testing.assert_close(vmap(f)(X), X + torch.arange(4.0))
    cpp.drop()


def test_a_tensor_made_inside_comes_back(cpp):
    def f(x):
        made = torch.ones(4)
        cpp.keep(made)
        made.add_(1)
        return x + cpp.give_kept()

    try:
        torch.testing.assert_close(vmap(f)(X), X + 2)
    finally:
        cpp.drop()


@pytest.mark.parametrize(
    "f",
    [
        lambda ops, x: ops.scaled(x, 2.0),
        lambda ops, x: ops.joined([x, torch.ones(2), x]),
        lambda ops, x: ops.joined([torch.ones(2)], x),
        lambda ops, x: (y := x.clone(), ops.scale_(y, 3.0))[0],
        lambda ops, x: ops.squared(x),
        lambda ops, x: vmap(lambda y: ops.scaled(y, 2.0))(x.view(2, 2)),
    ],
)
def test_a_registered_operator_is_mapped(cpp, f):
    ops = torch.ops.vmap_extension
    with pytest.warns(FallbackWarning, match="vmap_extension"):
        out = vmap(lambda x: f(ops, x))(X)
        expected = torch.stack([f(ops, x) for x in X])
    torch.testing.assert_close(out, expected)


def test_a_registered_operator_has_its_gradient(cpp):
    x, same = X.clone().requires_grad_(), X.clone().requires_grad_()
    with pytest.warns(FallbackWarning):
        vmap(torch.ops.vmap_extension.squared)(x).sum().backward()
    torch.ops.vmap_extension.squared(same).sum().backward()
    torch.testing.assert_close(x.grad, same.grad)


class Loops(Function):
    """As extensions are used: checks, then loops over data, in both directions."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * extension().checked_loop(w) + extension().typed_data_ptr(x) * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        cpp = extension()
        for_x = g * cpp.loop_over_data(w)
        for_x[0] += (g * w).sum()
        return for_x, torch.full_like(w, cpp.checked_loop(g * x)) + g * cpp.accessor(x.flip(0).contiguous())


def test_a_function_runs_sample_by_sample(cpp):
    ours, theirs = ([X.clone().requires_grad_(), torch.ones(4, requires_grad=True)] for _ in range(2))
    with pytest.warns(FallbackWarning, match=r"Function Loops calls code in C\+\+.*test_extension.py"):
        out = vmap(Loops.apply, in_dims=(0, None))(*ours)
    expected = torch.stack([Loops.apply(x, theirs[1]) for x in theirs[0]])
    torch.testing.assert_close(out, expected)
    weights = torch.arange(12.0).view(3, 4)
    torch.testing.assert_close(
        torch.autograd.grad((out * weights).sum(), ours), torch.autograd.grad((expected * weights).sum(), theirs)
    )
