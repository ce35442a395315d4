"""Casts and moves: values, layout, and what of the tensor's identity survives."""

import pytest
import torch

import vmap_core
from vmap_core import InplaceError, vmap

X = torch.rand(3, 4, 5) * 10
B = torch.tensor([2.0, 3.0, 4.0])
I = torch.tensor([1, 2, 3])  # noqa: E741
D = torch.rand(4, 5, dtype=torch.double)

CASES = {
    "to_dtype": lambda x, b, i: x.to(torch.double),
    "to_device": lambda x, b, i: x.to("cpu"),
    "to_both": lambda x, b, i: x.to(torch.device("cpu"), torch.half),
    "to_keywords": lambda x, b, i: x.to(dtype=torch.int32, device="cpu"),
    "to_other": lambda x, b, i: x.to(i),
    "to_other_plain": lambda x, b, i: x.to(D),
    "plain_to_other": lambda x, b, i: D.to(x) + x,
    "to_copy": lambda x, b, i: x.to(torch.float, copy=True),
    "to_non_blocking": lambda x, b, i: x.to(torch.double, non_blocking=True),
    "to_channels_last": lambda x, b, i: x.view(1, 2, 2, 5).to(memory_format=torch.channels_last),
    "to_dtype_channels_last": lambda x, b, i: x.view(1, 2, 2, 5).to(torch.double, memory_format=torch.channels_last),
    "clone_channels_last": lambda x, b, i: x.view(1, 2, 2, 5).clone(memory_format=torch.channels_last),
    "contiguous_channels_last": lambda x, b, i: x.view(1, 2, 2, 5).contiguous(memory_format=torch.channels_last),
    "half": lambda x, b, i: x.half(),
    "double": lambda x, b, i: x.double(),
    "bfloat16": lambda x, b, i: x.bfloat16(),
    "float": lambda x, b, i: i.float(),
    "int": lambda x, b, i: x.int(),
    "bool": lambda x, b, i: (x > 3).bool(),
    "cfloat": lambda x, b, i: x.cfloat(),
    "cpu": lambda x, b, i: x.cpu(),
    "type": lambda x, b, i: x.type(torch.double),
    "type_name": lambda x, b, i: x.type("torch.DoubleTensor"),
    "type_as": lambda x, b, i: x.type_as(i),
    "type_as_of_plain": lambda x, b, i: D.type_as(x) + x,
    "_to_copy": lambda x, b, i: torch.ops.aten._to_copy(x, dtype=torch.half),
    "contiguous": lambda x, b, i: x.t().contiguous(),
    "copy_broadcast": lambda x, b, i: x.clone().copy_(b),
    "copy_into_owned": lambda x, b, i: torch.zeros(4, 5).copy_(x),
    "copy_casts": lambda x, b, i: torch.zeros(4, 5, dtype=torch.int).copy_(x),
    "copy_plain": lambda x, b, i: x.clone().copy_(D),
    "copy_number": lambda x, b, i: x.clone().copy_(2.5),
    "data": lambda x, b, i: x.data * 2,
    "sparse": lambda x, b, i: x.to_sparse().to_dense(),
}


@pytest.mark.parametrize("in_dim", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_cast(name, in_dim):
    f = CASES[name]
    with vmap_core.fallback_policy("error"):
        out = vmap(f, in_dims=(in_dim, 0, 0))(X.movedim(0, in_dim).contiguous(), B, I)
    torch.testing.assert_close(out, torch.stack([f(*s) for s in zip(X, B, I, strict=True)]))


@pytest.mark.parametrize("name", CASES)
def test_cast_nested_and_sizes(name):
    f = CASES[name]
    once = vmap(f)(X, B, I)
    torch.testing.assert_close(vmap(vmap(f))(X[:, None], B[:, None], I[:, None]), once[:, None])
    torch.testing.assert_close(vmap(vmap(f, in_dims=(0, None, None)))(X[:, None], B, I), once[:, None])
    assert vmap(f)(X[:0], B[:0], I[:0]).shape == (0, *once.shape[1:])


def test_a_cast_that_changes_nothing_returns_self():
    def f(x):
        for y in (x.to(torch.float), x.float(), x.cpu(), x.contiguous(), x.type(torch.float), x.to("cpu"), x.to(x)):
            assert y is x
        assert x.to(torch.float, copy=True) is not x
        return x

    vmap(f)(X)


RESULT_TYPES = [
    (lambda x, b, i: (b, i)),
    (lambda x, b, i: (x, b.double())),
    (lambda x, b, i: (b.double(), x)),
    (lambda x, b, i: (i, 1.5)),
    (lambda x, b, i: (2, b.half())),
    (lambda x, b, i: (i.expand(2), b.double())),
    (lambda x, b, i: (D, b)),
    (lambda x, b, i: (torch.tensor(1.0, dtype=torch.double), x)),
]


@pytest.mark.parametrize("operands", RESULT_TYPES)
def test_result_type_is_of_the_samples(operands):
    seen = []

    def f(*sample):
        seen.append(torch.result_type(*operands(*sample)))
        return sample[0]

    vmap(f)(X, B, I)
    assert seen == [torch.result_type(*operands(X[0], B[0], I[0]))]


def test_copy_into_a_tensor_from_outside():
    outside = torch.zeros(4, 5)
    with pytest.raises(InplaceError):
        vmap(lambda x: outside.copy_(x))(X)
    assert not outside.any()


def test_gradients_pass():
    x = X.clone().requires_grad_()
    out = vmap(lambda s: s.double().to(torch.float).contiguous().type_as(D).cpu() * s)(x)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], 2 * X)


@pytest.mark.parametrize("in_dim", [0, 1, 2])
@pytest.mark.parametrize("physical", [True, False])
def test_contiguous_samples(in_dim, physical):
    """What counts is each sample's layout, not that of the batch; one that is contiguous is returned itself."""
    x = torch.randn(3, 2, 5).movedim(0, in_dim)
    x = x.contiguous() if physical else x
    seen = []

    def f(s):
        out = s.contiguous()
        seen.append((out is s, out.is_contiguous(), out.stride()))
        return out

    out = vmap(f, in_dims=in_dim)(x)
    sample = x.select(in_dim, 0)
    assert seen == [(sample.contiguous().data_ptr() == sample.data_ptr(), True, (5, 1))]
    assert torch.equal(out, x.movedim(in_dim, 0))


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 3, 1), (1, 1, 3), (1, 1, 1), (3, 2, 2)])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_in_place_writes_to_views_with_dims_of_size_one(shape, dim):
    def f(v):
        y = v.clone(memory_format=torch.preserve_format)
        y[:1] += 1
        y.mT[...] -= 2
        y.mT[:1] *= y.mT[:1] < 0
        y[...] = y
        y.narrow(0, 0, 1)[:] += 2
        return y

    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape) - 2
    expected = torch.stack([f(sample) for sample in x])
    assert torch.equal(vmap(f, in_dims=dim)(x.movedim(0, dim)), expected)
    assert torch.equal(vmap(vmap(f, in_dims=dim))(x.movedim(0, dim)[None])[0], expected)
