"""Containers of other libraries: with leading dims of their own, and with a say in PyTorch's functions."""

import pytest
import torch
from torch.utils._pytree import register_pytree_node

from vmap_core import vmap


class Batch:
    """Tensors by name with leading dims in common, as tensordict.TensorDict."""

    def __init__(self, batch_size, **tensors):
        self.batch_size = torch.Size(batch_size)
        self.tensors = tensors

    @property
    def batch_dims(self):
        return len(self.batch_size)

    def total(self):
        """Sum over the leading dims."""
        dims = tuple(range(self.batch_dims))
        return Batch((), **{k: t.sum(dims) if dims else t for k, t in self.tensors.items()})


class Lazy(Batch):
    """One that keeps its rows apart."""

    def __init__(self, rows):
        super().__init__((len(rows),), **{str(i): row for i, row in enumerate(rows)})


register_pytree_node(
    Batch, lambda b: (list(b.tensors.values()), (b.batch_size, list(b.tensors))),
    lambda values, context: Batch(context[0], **dict(zip(context[1], values, strict=True))),
)  # fmt: skip
register_pytree_node(Lazy, lambda b: (list(b.tensors.values()), None), lambda values, context: Lazy(values))


def batch():
    return Batch((4, 2), a=torch.randn(4, 2, 3), b=torch.randn(4, 2))


def test_a_container_inside_has_the_dims_of_a_sample():
    b = batch()

    def function(one):
        assert one.batch_size == (2,)
        return one.total()

    out = vmap(function)(b)
    assert out.batch_size == (4,)
    torch.testing.assert_close(out.tensors["a"], b.tensors["a"].sum(1))
    out = vmap(function, chunk_size=3)(b)
    assert out.batch_size == (4,)
    torch.testing.assert_close(out.tensors["b"], b.tensors["b"].sum(1))


def test_the_batch_dim_in_other_places():
    b = batch()

    def function(one):
        assert one.batch_size == (4,)
        return one

    out = vmap(function, in_dims=1, out_dims=1)(b)
    assert out.batch_size == (4, 2) and torch.equal(out.tensors["a"], b.tensors["a"])
    out = vmap(lambda one, w: (one, w * 2), in_dims=(None, 0))(b, torch.ones(5))
    assert out[0].batch_size == (5, 4, 2) and out[0].tensors["a"].shape == (5, 4, 2, 3)
    out = vmap(lambda one: one, in_dims=(2,), out_dims=2)(Batch((4, 2), a=b.tensors["a"]))
    assert out.tensors["a"].shape == (4, 2, 3)


def test_two_levels():
    b = batch()

    def function(one):
        assert one.batch_size == ()
        return one

    out = vmap(vmap(function))(b)
    assert out.batch_size == (4, 2) and torch.equal(out.tensors["b"], b.tensors["b"])


def test_dims_that_are_none_of_the_containers():
    with pytest.raises(ValueError, match="cannot map a Lazy over a dim that its parts do not have"):
        vmap(lambda b: b)(Lazy([torch.randn(3), torch.randn(3)]))
    with pytest.raises(ValueError, match="cannot map a Batch over a dim that its parts do not have"):
        vmap(lambda b: b.tensors["a"].sum())(Batch((4, 2), a=torch.randn(4, 2), b=torch.randn(4, 3)))
    with pytest.raises(ValueError, match=r"cannot map a Batch over the dims \[0, 1\]"):
        vmap(lambda b: b.tensors["a"].sum(), in_dims=(Batch((4, 4), a=0, b=1),))(
            Batch((4, 4), a=torch.randn(4, 4), b=torch.randn(4, 4))
        )


class Diagonal:
    """A matrix by its diagonal, as linear_operator.DiagLinearOperator."""

    def __init__(self, diagonal):
        self.diagonal = diagonal

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.matmul:
            return args[0].diagonal.unsqueeze(-1) * args[1]
        if func is torch.stack:
            return torch.stack([d.diagonal for d in args[0]])
        return NotImplemented


def test_a_type_that_overrides_functions():
    x, y = torch.randn(4, 3), torch.randn(4, 3, 2)
    expected = x.unsqueeze(-1) * y
    torch.testing.assert_close(vmap(lambda x, y: torch.matmul(Diagonal(x), y))(x, y), expected)
    torch.testing.assert_close(
        vmap(lambda x, y: torch.matmul(Diagonal(x), y), in_dims=(0, None))(x, y[0]), x.unsqueeze(-1) * y[0]
    )
    torch.testing.assert_close(vmap(lambda x: torch.stack([Diagonal(x)]))(x), x.unsqueeze(1))
    torch.testing.assert_close(vmap(vmap(lambda x: torch.stack([Diagonal(x)])))(y), y.unsqueeze(2))
    with pytest.raises(TypeError, match="no implementation found"):
        vmap(lambda x: torch.sin(Diagonal(x)))(x)
