"""autograd.Functions whose methods call C++ that cannot be mapped: sample by sample, with a warning."""

import pytest
import torch
from torch.autograd import Function

import vmap_core
from vmap_autograd import grad, jvp
from vmap_core import FallbackWarning, UnsupportedError, vmap

torch.manual_seed(0)
X = torch.randn(4, 3, dtype=torch.double)
W = torch.randn(3, dtype=torch.double)

pytestmark = pytest.mark.filterwarnings("ignore::vmap_core.FallbackWarning")


def in_cpp(function, *args):
    """Call a function without the hand-over to levels, as C++ that does not know of it would."""
    with torch._C.DisableTorchFunction():
        return function(*args)


def checked(x):
    """Complain as C++ does that looks before it asks: in a batched tensor it finds no dims."""
    if type(x) is not torch.Tensor:
        raise ValueError("expected a vector")
    return in_cpp(torch.sin, x)


class Forward(Function):
    @staticmethod
    def forward(ctx, x, w, k):
        ctx.save_for_backward(x, w)
        ctx.k = k
        return in_cpp(torch.mul, x, w) * k, x.sum()

    @staticmethod
    def backward(ctx, g, h):
        x, w = ctx.saved_tensors
        return g * w * ctx.k * 3 + h, g * x * ctx.k, None


class Backward(Forward):
    @staticmethod
    def forward(ctx, x, w, k):
        ctx.save_for_backward(x, w)
        ctx.k, ctx.held = k, {"cos": x.cos(), "twice": [x * 2], "none": None}
        return x * w * k, x.sum()

    @staticmethod
    def backward(ctx, g, h):
        x, w = ctx.saved_tensors
        held = ctx.held["cos"] + ctx.held["twice"][0]
        return in_cpp(torch.mul, g, held) * w + h, in_cpp(torch.mul, g, x) * ctx.k, None


class Both(Backward):
    @staticmethod
    def forward(x, w, k):
        return checked(x) * w * k, x.sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, ctx.k = inputs
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        ctx.held = {"cos": x.cos(), "twice": (x,)}

    @staticmethod
    def jvp(ctx, tx, tw, _):
        x, w = ctx.saved_tensors
        return in_cpp(torch.mul, tx, w) + x * tw, tx.sum()


FUNCTIONS = (Forward, Backward, Both)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("in_dims", [(0, None), (0, 0), (1, None)])
def test_results_and_gradients(function, in_dims):
    w = W if in_dims[1] is None else torch.randn(4, 3, dtype=torch.double)
    ours, theirs = ([t.clone().requires_grad_() for t in (X, w)] for _ in range(2))
    with pytest.warns(
        FallbackWarning, match=rf"autograd.Function {function.__name__} calls code in C\+\+.*_by_sample.py"
    ):
        x = ours[0] if in_dims[0] == 0 else ours[0].T
        out = vmap(lambda x, w: function.apply(x, w, 0.5), in_dims=in_dims)(x, ours[1])
        got = torch.autograd.grad([o.square().sum() for o in out], ours)
    rows = theirs[1] if in_dims[1] == 0 else [theirs[1]] * 4
    each = [function.apply(r, v, 0.5) for r, v in zip(theirs[0], rows, strict=True)]
    expected = [torch.stack(column) for column in zip(*each, strict=True)]
    torch.testing.assert_close(list(out), expected)
    torch.testing.assert_close(got, torch.autograd.grad([o.square().sum() for o in expected], theirs))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_inside(function):
    def f(x):
        return grad(lambda x: function.apply(x, W, 2.0)[0].square().sum())(x)

    def one(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(function.apply(x, W, 2.0)[0].square().sum(), x)[0]

    torch.testing.assert_close(vmap(f)(X), torch.stack([one(x) for x in X]))


def test_forward_mode():
    def f(x):
        return jvp(lambda x: Both.apply(x, W, 1.0), (x,), (x.cos(),))

    (out, _), (tangent, sums) = vmap(f)(X)
    torch.testing.assert_close(out, X.sin() * W)
    torch.testing.assert_close((tangent, sums), (X.cos() * W, X.cos().sum(1)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nested(function):
    ys = torch.randn(2, 3, dtype=torch.double)
    out = vmap(lambda x: vmap(lambda y: function.apply(x, y, 2.0)[0])(ys))(X)
    torch.testing.assert_close(out, torch.stack([torch.stack([function.apply(x, y, 2.0)[0] for y in ys]) for x in X]))
    out = vmap(lambda x: vmap(lambda y: function.apply(x, y, 2.0)[0] + y, in_dims=0)(ys), randomness="same")(X)
    assert out.shape == (4, 2, 3)


def test_the_policy_holds():
    with (
        vmap_core.fallback_policy("error"),
        pytest.raises(vmap_core.FallbackError, match="Function Forward calls code"),
    ):
        vmap(lambda x: Forward.apply(x, W, 1.0))(X)
    with vmap_core.fallback_policy("silent"):
        vmap(lambda x: Forward.apply(x, W, 1.0))(X)


class Fails(Function):
    error: type = ValueError
    calls = 0

    @staticmethod
    def forward(ctx, x):
        Fails.calls += 1
        raise Fails.error(f"call {Fails.calls}")


@pytest.mark.parametrize(("error", "calls"), [(ValueError, 2), (torch.OutOfMemoryError, 1), (UnsupportedError, 1)])
def test_an_error_of_its_own_stays_what_it_is(error, calls, monkeypatch, recwarn):
    monkeypatch.setattr(Fails, "calls", 0)
    monkeypatch.setattr(Fails, "error", error)
    with pytest.raises(error, match="call 1"):
        vmap(Fails.apply)(X)
    assert Fails.calls == calls and not recwarn


class OfASample(Function):
    @staticmethod
    def forward(ctx, x):
        y = in_cpp(torch.sin, x)
        raise ZeroDivisionError(f"{y.shape}")


class Writes(Function):
    @staticmethod
    def forward(ctx, x):
        x.add_(1)
        ctx.mark_dirty(x)
        return in_cpp(torch.add, x, 1), x


class WritesLater(Function):
    @staticmethod
    def forward(ctx, x):
        y = in_cpp(torch.add, x, 1)
        x.add_(1)
        ctx.mark_dirty(x)
        return y, x


def test_what_a_sample_raises_is_raised():
    with pytest.raises(ZeroDivisionError, match=r"\[3\]"):
        vmap(OfASample.apply)(X)


@pytest.mark.parametrize("function", [Writes, WritesLater])
def test_one_that_writes_is_refused(function):
    with pytest.raises(UnsupportedError, match=r"C\+\+ asked aten::add"):
        vmap(function.apply)(X.clone())


def test_captured_tensors_stay_refused():
    class Closure(Function):
        @staticmethod
        def forward(ctx, y):
            return in_cpp(torch.add, held[0], y)

    held = []
    for own in (True, False):
        with pytest.raises(UnsupportedError, match=r"C\+\+ asked aten::add"):
            vmap(lambda x, own=own: (held.clear(), held.append(x), Closure.apply(x if own else W))[-1])(X)


def test_a_program_does_not_take_its_values_for_constants():
    with pytest.raises(vmap_core.CaptureError, match=r"Function Forward calls code in C\+\+"):
        vmap_core.capture(vmap(lambda x: Forward.apply(x, W, 1.0)[0]), X)
