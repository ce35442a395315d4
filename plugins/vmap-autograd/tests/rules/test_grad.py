"""torch.autograd.grad inside mapped functions, in each combination of what is batched, against the loop."""

import pytest
import torch

from vmap_core import use_packs, vmap

X = torch.randn(4, 3, dtype=torch.float64)
W = torch.randn(3, dtype=torch.float64)


def loss(x, w):
    return torch.tanh(x * w).sum() + (x @ w) ** 2


def loop(function, *args):
    return torch.stack([function(*row) for row in zip(*args, strict=True)])


def test_jacobian_by_one_batched_grad():
    x = X[0].clone().requires_grad_()
    y = x.pow(2) * x.sum() + torch.sin(x).cumsum(0)
    expected = torch.autograd.functional.jacobian(lambda x: x.pow(2) * x.sum() + torch.sin(x).cumsum(0), x)
    got = vmap(lambda v: torch.autograd.grad(y, x, v)[0])(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(got, expected)


def test_jacobian_keeps_a_graph():
    x = X[0].clone().requires_grad_()
    y = x.pow(3)
    rows = vmap(lambda v: torch.autograd.grad(y, x, v, create_graph=True)[0])(torch.eye(3, dtype=torch.float64))
    (second,) = torch.autograd.grad(rows.sum(), x)
    torch.testing.assert_close(second, 6 * x.detach())


@pytest.mark.parametrize("in_dim", [0, 1])
def test_per_sample_gradients(in_dim):
    x = X.movedim(0, in_dim).contiguous()
    got = vmap(lambda s: torch.autograd.functional.vjp(lambda w: loss(s, w), W)[1], in_dims=in_dim)(x)
    expected = loop(lambda s: torch.autograd.functional.vjp(lambda w: loss(s, w), W)[1], X)
    torch.testing.assert_close(got, expected)


def test_a_leaf_made_inside():
    def gradient(s):
        w = W.detach().requires_grad_()
        return torch.autograd.grad(loss(s, w), w)[0]

    torch.testing.assert_close(vmap(gradient)(X), loop(gradient, X))
    assert not W.requires_grad


def test_batched_inputs_and_vectors():
    def gradient(x, v):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(torch.sin(x) * x.sum(), x, v)[0]

    torch.testing.assert_close(vmap(gradient)(X, X.flip(0)), loop(gradient, X, X.flip(0)))


def test_second_derivatives():
    def hessian_vector(x):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(x, W), x, create_graph=True)
        return torch.autograd.grad(g @ W, x)[0]

    torch.testing.assert_close(vmap(hessian_vector)(X), loop(hessian_vector, X))


def test_a_leaf_that_all_samples_share_warns_and_is_right():
    w = W.clone().requires_grad_()

    def gradient(s):
        return torch.autograd.grad(loss(s, w), w)[0]

    with pytest.warns(UserWarning, match="one vector per sample"):
        got = vmap(gradient)(X)
    torch.testing.assert_close(got, loop(gradient, X))


def test_nested():
    def gradient(s, t):
        w = W.detach().requires_grad_()
        return torch.autograd.grad(loss(s, w) * t, w)[0]

    t = torch.randn(5, dtype=torch.float64)
    got = vmap(lambda s: vmap(lambda t: gradient(s, t))(t))(X)
    expected = torch.stack([torch.stack([gradient(s, u) for u in t]) for s in X])
    torch.testing.assert_close(got, expected)


def test_unused_inputs():
    def gradient(s):
        w, u = W.detach().requires_grad_(), W.detach().requires_grad_()
        g, none = torch.autograd.grad(loss(s, w), (w, u), allow_unused=True)
        assert none is None
        return g

    assert vmap(gradient)(X).shape == (4, 3)


def test_outer_gradients_through_inner_ones():
    x = X.clone().requires_grad_()

    def gradient(s):
        w = W.detach().requires_grad_()
        return torch.autograd.grad(loss(s, w), w, create_graph=True)[0]

    (got,) = torch.autograd.grad(vmap(gradient)(x).sum(), x)
    (expected,) = torch.autograd.grad(loop(gradient, x).sum(), x)
    torch.testing.assert_close(got, expected)


def test_without_the_pack_it_is_a_clear_error():
    def gradient(s):
        w = W.detach().requires_grad_()
        return torch.autograd.grad(loss(s, w), w)[0]

    with use_packs(), pytest.raises(RuntimeError, match="pip install vmap-autograd"):
        vmap(gradient)(X)


V = torch.randn(3, 3, dtype=torch.float64)


def vector(x):
    return torch.tanh(x @ V) * x.sum()


def jacobian_by_rows(x, **options):
    x = x.detach().requires_grad_()
    y = vector(x)
    eye = torch.eye(3, dtype=torch.float64)
    if options:
        return torch.autograd.grad(y, x, eye, **options)[0]
    return vmap(lambda v: torch.autograd.grad(y, x, v, retain_graph=True)[0])(eye)


JACOBIANS = torch.stack([torch.autograd.functional.jacobian(vector, x) for x in X])


def test_a_mapped_backward_pass_over_a_graph_of_an_outer_level():
    torch.testing.assert_close(vmap(jacobian_by_rows)(X), JACOBIANS)
    torch.testing.assert_close(vmap(lambda x: jacobian_by_rows(x, is_grads_batched=True))(X), JACOBIANS)
    two = torch.stack([X, X.flip(0)])
    torch.testing.assert_close(vmap(vmap(jacobian_by_rows))(two), torch.stack([JACOBIANS, JACOBIANS.flip(0)]))
    moved = vmap(vmap(jacobian_by_rows, in_dims=1, out_dims=2), in_dims=2)(two.permute(2, 1, 0).contiguous())
    torch.testing.assert_close(moved, torch.stack([JACOBIANS, JACOBIANS.flip(0)]).movedim(1, 3))


@pytest.mark.filterwarnings("ignore:vmap. torch.autograd.grad at .*from outside")
def test_outputs_inputs_and_vectors_of_every_kind_in_one_call():
    w = W.clone().requires_grad_()

    def mixed(x, v):
        shared = w * 2
        leaf = x.detach().requires_grad_()
        own = (leaf * w).sin()
        return torch.autograd.grad((shared, own), (w, leaf), (v, v))

    vectors = X.cos()
    ours = vmap(mixed)(X, vectors)
    rows = [mixed(x, v) for x, v in zip(X, vectors, strict=True)]
    torch.testing.assert_close(ours, tuple(torch.stack(column) for column in zip(*rows, strict=True)))


def _takes_names():
    leaf = torch.ones(1, requires_grad=True)
    try:
        return isinstance(torch.autograd.grad(leaf.sum(), {"leaf": leaf}), dict)
    except (TypeError, RuntimeError):
        return False


@pytest.mark.filterwarnings("ignore:vmap. torch.autograd.grad at .*from outside")
def test_a_captured_leaf_of_an_outer_graph_two_levels_out():
    w = W.clone().requires_grad_()
    eye = torch.eye(3, dtype=torch.float64)

    def rows(x):
        y = (x * w).sin()
        return vmap(lambda v: torch.autograd.grad(y, w, v, retain_graph=True)[0])(eye)

    expected = torch.stack([torch.diag((x * W).cos() * x) for x in X])
    torch.testing.assert_close(vmap(rows)(X), expected)


@pytest.mark.skipif(not _takes_names(), reason="PyTorch before 2.13 takes no dict of inputs")
def test_inputs_by_name():
    def f(x):
        leaf, other = W.detach().requires_grad_(), W.detach().requires_grad_()
        named = torch.autograd.grad((leaf * x).sum(), {"leaf": leaf, "other": other}, allow_unused=True)
        assert named["other"] is None
        return named["leaf"]

    torch.testing.assert_close(vmap(f)(X), X)


def test_inputs_unused_and_materialized():
    def f(x):
        leaf, other = W.detach().requires_grad_(), W.detach().requires_grad_()
        unused = torch.autograd.grad((leaf * x).sum(), (leaf, other), allow_unused=True)
        assert unused[1] is None
        filled = torch.autograd.grad((leaf * x).sum(), (leaf, other), materialize_grads=True)
        return unused[0] + filled[0] + filled[1]

    torch.testing.assert_close(vmap(f)(X), 2 * X)
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        vmap(lambda x: torch.autograd.grad((x * x.detach().requires_grad_()).sum(), W.detach().requires_grad_()))(X)


def test_a_graph_that_was_freed_is_pytorchs_error():
    def twice(x):
        leaf = W.detach().requires_grad_()
        y = (leaf * x).exp().sum()
        torch.autograd.grad(y, leaf)
        return torch.autograd.grad(y, leaf)[0]

    with pytest.raises(RuntimeError, match="second time"):
        vmap(twice)(X)


def test_in_place_after_the_leaf_and_tensors_promoted_on_the_way():
    def f(x):
        leaf = W.detach().requires_grad_()
        out = torch.zeros(3, dtype=torch.float64)
        out[1:] = (leaf * x)[1:]
        out.mul_(x)
        return torch.autograd.grad(out.sum(), leaf)[0]

    torch.testing.assert_close(vmap(f)(X), loop(f, X))


@pytest.mark.parametrize("levels", [1, 2])
def test_complex_graphs_that_are_kept(levels):
    """Lazy conjugates are resolved below autograd: rows over such a graph still lead on to what they depend on."""
    z = torch.randn(3, 3, dtype=torch.complex128)

    def rows(x):
        y = (z @ (x * (1 + 1j))).abs()
        jacobian = vmap(lambda v: torch.autograd.grad(y, x, v, create_graph=True)[0])(torch.eye(3, dtype=torch.float64))
        return torch.autograd.grad(jacobian.sin().sum(), x)[0]

    if levels == 1:
        x = X[0].clone().requires_grad_()
        jacobian = torch.autograd.functional.jacobian(lambda x: (z @ (x * (1 + 1j))).abs(), x, create_graph=True)
        torch.testing.assert_close(rows(x), torch.autograd.grad(jacobian.sin().sum(), x)[0])
    else:
        ours = vmap(lambda x: rows(x.detach().requires_grad_()))(X)
        torch.testing.assert_close(ours, torch.stack([rows(x.clone().requires_grad_()) for x in X]))
