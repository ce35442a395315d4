"""autograd.Function inside mapped functions: the custom gradient is used, per sample, in every style."""

import pytest
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vmap_autograd import grad, jvp
from vmap_core import DataDependentError, vmap

torch.manual_seed(0)
X = torch.randn(4, 3, dtype=torch.double)
W = torch.randn(3, dtype=torch.double)


class Exp(Function):
    """Old style; its gradient is twice the true one, so that a test sees which is used."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return 2 * g * y


class Mul(Function):
    """New style, two outputs, a number among the arguments, a gradient that is not linear, its own jvp."""

    @staticmethod
    def forward(x, w, k):
        return x * w * k, x + 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, k = inputs
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        ctx.k = k

    @staticmethod
    def backward(ctx, g, h):
        x, w = ctx.saved_tensors
        for_w = (g * x * ctx.k * 5).clamp(-1, 1) if ctx.needs_input_grad[1] else None
        return g * w * ctx.k * 3 + h, for_w, None

    @staticmethod
    def jvp(ctx, tx, tw, _):
        x, w = ctx.saved_tensors
        return ctx.k * (tx * w + x * tw), tx * 7


class Generated(Mul):
    generate_vmap_rule = True


class Own(Function):
    """Has a rule of its own, which marks what it returns."""

    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, g * x

    @staticmethod
    def vmap(info, in_dims, x, w):
        assert info.batch_size == 4 and info.randomness == "error"
        x = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(info.batch_size, *x.shape)
        return Own.apply(x, w if in_dims[1] is None else w.movedim(in_dims[1], 0)) + 100, 0


def both(f, *, second=True):
    """Compare values, gradients and gradients of gradients of vmap(f) with the loop's."""
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()

    def derivatives(out):
        torch.manual_seed(1)
        first = torch.autograd.grad(out, (x, w), torch.randn_like(out), create_graph=True, allow_unused=True)
        result = [out, *first]
        total = sum(g.pow(2).sum() for g in first if g is not None)
        if second and total.requires_grad:
            result += torch.autograd.grad(total, (x, w), allow_unused=True)
        return result

    ours = derivatives(vmap(lambda x: f(x, w))(x))
    for a, b in zip(ours, derivatives(torch.stack([f(row, w) for row in x])), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("function", [Mul, Generated])
def test_values_gradients_and_second_gradients(function):
    def f(x, w):
        a, b = function.apply(x, w, 2.0)
        return Exp.apply(a).sum() + b.sum()

    both(f)


def test_a_gradient_that_is_not_linear_is_taken_per_sample_where_all_arguments_are_shared():
    both(lambda x, w: (sum(Mul.apply(w, w, 2.0)) * x).sum())


def test_a_gradient_that_does_not_depend_on_the_incoming_one_counts_for_every_sample():
    class Ones(Function):
        @staticmethod
        def forward(ctx, w):
            return w * 1

        @staticmethod
        def backward(ctx, g):
            return torch.ones(3, dtype=torch.double)

    both(lambda x, w: (Ones.apply(w) * x).sum(), second=False)


def test_nested():
    def f(x, w):
        scales = torch.arange(2.0, dtype=torch.double)
        return vmap(lambda s: Exp.apply(s * x).sum() + Mul.apply(x, w * s, 1.0)[0].sum())(scales).sum()

    both(f)


def test_gradients_inside():
    def f(x, w):
        y = Exp.apply(Mul.apply(x, w, 2.0)[0]).sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        return g.sum() * y

    both(lambda x, w: f(x * 1, w))


def test_its_own_vmap_staticmethod():
    out = vmap(Own.apply, in_dims=(0, None))(X, W)
    torch.testing.assert_close(out, X * W + 100)
    torch.testing.assert_close(vmap(Own.apply, in_dims=(None, 0))(W, X), X * W + 100)


def test_own_vmap_and_a_generated_one_are_ambiguous():
    class Both(Own):
        generate_vmap_rule = True

    with pytest.raises(RuntimeError, match="both generate_vmap_rule"):
        vmap(Both.apply, in_dims=(0, None))(X, W)


def test_once_differentiable():
    class Once(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.x = x
            return x.sin()

        @staticmethod
        @once_differentiable
        def backward(ctx, g):
            return g * ctx.x.cos()

    x = X.clone().requires_grad_()
    for out in (vmap(lambda x: Once.apply(x) ** 2)(x), torch.stack([Once.apply(row) ** 2 for row in x])):
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        torch.testing.assert_close(g, 2 * X.sin() * X.cos())
        with pytest.raises(RuntimeError, match="differentiate twice|not have been used"):  # what PyTorch says of it
            torch.autograd.grad(g.sum(), x)


def test_mark_dirty_gives_the_argument_itself():
    class Double(Function):
        @staticmethod
        def forward(ctx, x):
            x.mul_(2)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 2

    def f(x, w):
        z = x * w
        y = Double.apply(z)
        assert y is z
        return (y * x).sum()

    both(f)


def test_non_differentiable_outputs_and_unmaterialized_gradients():
    class Sort(Function):
        @staticmethod
        def forward(ctx, x):
            values, order = x.sort()
            ctx.save_for_backward(order)
            ctx.mark_non_differentiable(order)
            ctx.set_materialize_grads(False)
            return values, order, "text"

        @staticmethod
        def backward(ctx, g, none, text):
            assert none is None and text is None
            return torch.zeros_like(g).scatter(0, ctx.saved_tensors[0], g)

    def f(x, w):
        values, order, text = Sort.apply(x * w)
        assert text == "text" and not order.requires_grad and order.dtype == torch.int64
        return (values * torch.arange(3)).sum()

    both(f)


def test_no_gradient_is_wanted():
    seen = []

    class Plain(Function):
        @staticmethod
        def forward(ctx, x, w):
            seen.append((torch.is_grad_enabled(), ctx.needs_input_grad, tuple(x.shape)))
            return x + w

        @staticmethod
        def backward(ctx, g):
            raise AssertionError("nothing requires grad")

    out = vmap(lambda x: Plain.apply(x, W))(X)
    torch.testing.assert_close(out, X + W)
    assert seen == [(False, (False, False), (3,))]


def test_random_numbers_and_captured_tensors_in_forward():
    class Noise(Function):
        @staticmethod
        def forward(ctx, x):
            return x + torch.rand(3, dtype=torch.double)

        @staticmethod
        def backward(ctx, g):
            return g

    w = W.clone().requires_grad_()
    out = vmap(lambda x: Noise.apply(w), randomness="different")(X)
    assert not torch.equal(out[0], out[1])
    same = vmap(lambda x: Noise.apply(w), randomness="same")(X)
    assert torch.equal(same[0], same[1])


def test_a_wrong_number_of_gradients_is_an_error_as_without_vmap():
    class Short(Function):
        @staticmethod
        def forward(ctx, x, y):
            return x * y

        @staticmethod
        def backward(ctx, g):
            return g

    x = X.clone().requires_grad_()
    with pytest.raises(
        RuntimeError, match=r"ShortBackward returned an incorrect number of gradients \(expected 2, got 1\)"
    ):
        vmap(lambda x: Short.apply(x, W).sum())(x).sum().backward()


def test_a_forward_that_reads_values_is_a_clear_error():
    class Numpy(Function):
        @staticmethod
        def forward(ctx, x):
            return torch.from_numpy(x.numpy() + 1)

    with pytest.raises(DataDependentError):
        vmap(Numpy.apply)(X)


def test_under_torch_func():
    def f(x):
        return Exp.apply(x).sum()

    outer = torch.func.grad(lambda x: vmap(f)(x).sum())
    with pytest.raises(RuntimeError, match="setup_context"):  # what PyTorch says of an old-style Function
        torch.func.grad(f)(X[0])
    torch.testing.assert_close(outer(X), 2 * X.exp())  # inside our vmap it works
    second = torch.func.grad(lambda x: outer(x).sum())
    torch.testing.assert_close(second(X), 4 * X.exp())


def test_jvp_staticmethod():
    def f(x):
        a, b = Mul.apply(x, W, 2.0)
        return a.sin().sum() + b.sum()

    T = torch.randn(4, 3, dtype=torch.double)
    loop = torch.stack([jvp(f, (x,), (t,))[1] for x, t in zip(X, T, strict=True)])
    torch.testing.assert_close(vmap(lambda x, t: jvp(f, (x,), (t,))[1])(X, T), loop)
    torch.testing.assert_close(jvp(vmap(f), (X,), (T,))[1], loop)


def test_the_graph_shows_the_class_name_and_its_hooks_see_a_sample():
    seen = []

    def f(x):
        y = Exp.apply(x)
        assert y.grad_fn.name() == "ExpBackward"
        y.grad_fn.register_hook(lambda into, out: seen.append((into[0].shape, out[0].shape)))
        return y.sum()

    x = X.clone().requires_grad_()
    vmap(f)(x).sum().backward()
    assert seen == [((3,), (3,))]


def test_per_sample_gradients_of_a_function_with_a_custom_gradient():
    def loss(w, x):
        return Exp.apply(w * x).sum()

    ours = vmap(grad(loss), in_dims=(None, 0))(W, X)
    torch.testing.assert_close(ours, 2 * X * (W * X).exp())
