"""Memory of tensors: not handed out where the samples share it, told apart by what is aliased, assigned by ``.data``."""

import pytest
import torch

from vmap_core import UnsupportedError, vmap

X = torch.rand(3, 4, 5) * 10


def test_storage_is_not_handed_out():
    for name in ("data_ptr", "untyped_storage", "storage"):
        with pytest.raises(UnsupportedError, match=name):
            vmap(lambda x, name=name: getattr(x, name)())(X)

    def f(x):
        assert torch.zeros(3).data_ptr()
        assert x.share_memory_() is x
        return x

    vmap(f)(X.clone())


def test_set_data():
    def f(x):
        y = torch.zeros(2)
        y.data = x * 2
        assert y.shape == (4, 5)
        return y

    assert torch.equal(vmap(f)(X), X * 2)
    plain = torch.zeros(4, 5)

    def g(x):
        plain.data = x
        return x

    with pytest.raises(UnsupportedError, match="assignment to .data"):
        vmap(g)(X)


@pytest.mark.parametrize("in_dim", [0, 1, 2])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_set_data_wherever_the_batch_dim_is(size, in_dim):
    x = torch.rand(4, 5).expand(size, 4, 5).movedim(0, in_dim)

    def f(s, w):
        y, z = torch.zeros(2, dtype=torch.int64), s.clone()
        y.data = s.long()  # another shape, another batch dim
        z.data = w
        assert y.shape == s.shape
        return y, z

    y, z = vmap(f, in_dims=(in_dim, None))(x, torch.ones(3))
    assert torch.equal(y, x.movedim(in_dim, 0).long())
    assert torch.equal(z, torch.ones(size, 3))


def test_set_data_at_two_levels():
    x, y = torch.rand(3, 4), torch.rand(2, 4)

    def f(a, b):
        t = torch.zeros(())
        t.data = a
        inner = t * b
        t.data = b
        return inner + t

    got = vmap(vmap(f, in_dims=(None, 0)), in_dims=(0, None))(x, y)
    torch.testing.assert_close(got, x[:, None] * y + y)


@pytest.mark.parametrize("in_dims", [0, 1, 2])
def test_set_data_of_a_leaf(in_dims):
    """It stays the same leaf; what was computed before keeps the values of then."""

    def f(s):
        leaf = s.detach().clone().requires_grad_()
        before = (leaf * leaf).sum()
        leaf.data = s * 2
        after = (leaf * leaf).sum()
        return leaf, before, after, torch.autograd.grad(after, leaf)[0]

    def shared(s):
        leaf = torch.zeros(2).requires_grad_()
        leaf.data = torch.ones(2)
        return leaf * s.sum()

    x = torch.randn(3, 4, 5)
    for g in (f, shared):
        got, expected = vmap(g, in_dims=in_dims)(x), [g(s) for s in x.unbind(in_dims)]
        if g is shared:
            torch.testing.assert_close(got, torch.stack(expected))
            continue
        for a, e in zip(got, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(a, torch.stack(e))


def test_aliases():
    """Of the samples: a tensor and its views share memory, what is computed does not."""
    alias = torch._C._is_alias_of

    def f(x, y):
        assert alias(x, x[1:]) and alias(x.t(), x) and not alias(x, x * 1) and not alias(x, y)
        return x

    vmap(f, in_dims=(0, None))(X, torch.ones(2))
    vmap(vmap(lambda x: f(x[None], torch.ones(2))))(X)


def test_memory_that_all_samples_share_is_handed_out():
    def f(x):
        same, other = torch.ones(2, 2), torch.ones(3)
        assert same.untyped_storage().nbytes() == 16
        assert same.data_ptr() == same[:1].data_ptr() != other.data_ptr()
        return x * same.apply_(lambda v: v + 1).sum()

    torch.testing.assert_close(vmap(f)(X), X * 8)
