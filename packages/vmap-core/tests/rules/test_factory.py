"""Factories inside a mapped function: like a tensor, of a shape, from Python data."""

import pytest
import torch

import vmap_core
from vmap_core import DataDependentError, vmap

X = torch.rand(3, 4, 5) + 0.5
B = torch.tensor([2.0, 3.0, 4.0])
I = torch.tensor([1, 2, 3])  # noqa: E741
D = torch.ones(2, dtype=torch.double)

# Each takes a (4, 5) tensor, a float and an int scalar.
CASES = {
    "zeros_like": lambda x, b, i: torch.zeros_like(x),
    "ones_like": lambda x, b, i: torch.ones_like(x, dtype=torch.double),
    "ones_like_scalar": lambda x, b, i: torch.ones_like(b),
    "empty_like": lambda x, b, i: torch.empty_like(x).fill_(1.0),
    "like_transposed": lambda x, b, i: torch.zeros_like(x.t()),
    "like_expanded": lambda x, b, i: torch.zeros_like(x[0].expand(3, 5)),
    "like_channels_last": lambda x, b, i: torch.ones_like(x.view(1, 2, 2, 5), memory_format=torch.channels_last),
    "like_view": lambda x, b, i: torch.zeros_like(x).view(-1).add_(x.reshape(-1)),
    "requires_grad": lambda x, b, i: torch.zeros_like(x, requires_grad=True).detach() + x,
    "full_like": lambda x, b, i: torch.full_like(x, 2),
    "full_like_batched": lambda x, b, i: torch.full_like(x, b),
    "full_like_dtype": lambda x, b, i: torch.full_like(x, b, dtype=torch.int32),
    "full": lambda x, b, i: torch.full((2,), 3.0) + b,
    "full_batched": lambda x, b, i: torch.full((3,), b),
    "full_int": lambda x, b, i: torch.full((2, 2), i),
    "full_dtype": lambda x, b, i: torch.full((), b, dtype=torch.double),
    "full_keywords": lambda x, b, i: torch.full(size=(2,), fill_value=b),
    "new_full": lambda x, b, i: x.new_full((2,), b),
    "new_full_of_plain": lambda x, b, i: D.new_full((2,), b),
    "new_zeros": lambda x, b, i: x.new_zeros(2, 3),
    "new_ones": lambda x, b, i: x.new_ones((2,), dtype=torch.int),
    "new_empty": lambda x, b, i: x.new_empty(2).zero_(),
    "new_empty_strided": lambda x, b, i: x.new_empty_strided((2, 3), (1, 2)).zero_(),
    "tensor": lambda x, b, i: torch.tensor([b, b]),
    "tensor_nested": lambda x, b, i: torch.tensor([[b, 1.0], [2, i]]),
    "tensor_dtype": lambda x, b, i: torch.tensor([b, i], dtype=torch.double),
    "tensor_elements": lambda x, b, i: torch.tensor([x[0, 0], x[1, 1]]),
    "tensor_one_element": lambda x, b, i: torch.tensor([x[:1, 0], x[:1, 1]]),
    "tensor_promotes": lambda x, b, i: torch.tensor([i, 2.5]),
    "tensor_of_tensor": lambda x, b, i: torch.tensor(x, dtype=torch.double),
    "tensor_plain": lambda x, b, i: torch.tensor([1, 2]) + i,
    "as_tensor": lambda x, b, i: torch.as_tensor([b, i]),
    "as_tensor_dtype": lambda x, b, i: torch.as_tensor(x, dtype=torch.double),
    "asarray": lambda x, b, i: torch.asarray([b, b]),
    "asarray_dtype": lambda x, b, i: torch.asarray(x, dtype=torch.double),
    "asarray_copy": lambda x, b, i: torch.asarray(x, copy=True),
    "scalar_tensor": lambda x, b, i: torch.scalar_tensor(i),
    "new_tensor": lambda x, b, i: x.new_tensor([b, 1]),
    "new_tensor_of_plain": lambda x, b, i: D.new_tensor([b, i]),
    "new_tensor_written": lambda x, b, i: x.new_tensor([1, 2]).add_(b),
    "vander": lambda x, b, i: torch.vander(x[0]),
    "vander_columns": lambda x, b, i: torch.vander(x[0], 3, increasing=True),
    "vander_none": lambda x, b, i: torch.vander(x[0], 0),
    "linalg_vander": lambda x, b, i: torch.linalg.vander(x, N=3),
    "complex": lambda x, b, i: torch.complex(x, x),
    "polar": lambda x, b, i: torch.polar(x, x),
    "linspace_start": lambda x, b, i: torch.linspace(b, 10.0, 4),
    "linspace_end": lambda x, b, i: torch.linspace(1.0, b, 5),
    "linspace_both": lambda x, b, i: torch.linspace(b, b + 2, 5, dtype=torch.double),
    "linspace_int": lambda x, b, i: torch.linspace(i, 10, 4, dtype=torch.int64),
    "linspace_one": lambda x, b, i: torch.linspace(b, 10, 1),
    "linspace_none": lambda x, b, i: torch.linspace(b, 10, 0),
    "logspace": lambda x, b, i: torch.logspace(b, 3.0, 4),
    "logspace_base": lambda x, b, i: torch.logspace(0.0, b, 4, base=2.0),
    "arange": lambda x, b, i: torch.arange(3) * i,
    "eye": lambda x, b, i: torch.eye(3) * b,
    "window": lambda x, b, i: torch.hann_window(4) * b,
    "tril_indices": lambda x, b, i: torch.tril_indices(3, 3) * i,
    "zeros_written": lambda x, b, i: torch.zeros(4, 5).add_(x),
    "empty_copied": lambda x, b, i: torch.empty(5).copy_(x[0]),
    "range": lambda x, b, i: torch.range(0, 3) * b,
}


@pytest.mark.filterwarnings("ignore:To copy construct", "ignore:torch.range is deprecated")
@pytest.mark.parametrize("in_dim", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_factory(name, in_dim):
    f = CASES[name]
    expected = [f(*sample) for sample in zip(X, B, I, strict=True)]
    with vmap_core.fallback_policy("error"):
        out = vmap(f, in_dims=(in_dim, 0, 0))(X.movedim(0, in_dim).contiguous(), B, I)
    torch.testing.assert_close(out, torch.stack(expected))


@pytest.mark.filterwarnings("ignore:To copy construct", "ignore:torch.range is deprecated")
@pytest.mark.parametrize("name", CASES)
def test_factory_nested_and_sizes(name):
    f = CASES[name]
    if "written" in name or "copied" in name or name == "like_view":
        twice = vmap(vmap(f))(X[:, None], B[:, None], I[:, None])
    else:
        twice = vmap(vmap(f, in_dims=(0, None, None)))(X[:, None], B, I)
    once = vmap(f)(X, B, I)
    torch.testing.assert_close(twice, once[:, None])
    assert vmap(f)(X[:0], B[:0], I[:0]).shape == (0, *once.shape[1:])
    torch.testing.assert_close(vmap(f)(X[:1], B[:1], I[:1]), once[:1])


@pytest.mark.parametrize("in_dim", [0, 1, 2])
@pytest.mark.parametrize(
    "f",
    [
        torch.zeros_like,
        torch.empty_like,
        lambda x: torch.ones_like(x.t()),
        lambda x: torch.full_like(x[::2], 1.0),
        lambda x: torch.empty_like(x, memory_format=torch.contiguous_format),
        lambda x: torch.empty_like(x.view(1, 2, 2, 5), memory_format=torch.channels_last),
        lambda x: x.new_empty(2, 3),
        lambda x: x.new_empty_strided((2, 3), (1, 2)),
    ],
)
def test_strides_are_those_of_a_sample(f, in_dim):
    seen = []

    def function(x):
        out = f(x)
        seen.append((out.stride(), out.is_contiguous()))
        return out

    vmap(function, in_dims=in_dim)(X.movedim(0, in_dim).contiguous())
    sample = f(X[0].clone())
    assert seen == [(sample.stride(), sample.is_contiguous())]


@pytest.mark.parametrize("in_dim", [0, 1])
@pytest.mark.parametrize("f", [torch.zeros_like, torch.ones_like, torch.empty_like, lambda x: torch.full_like(x, 2)])
def test_like_is_one_tensor_until_a_write(f, in_dim):
    made = []

    def function(x):
        made.extend([f(x), f(x).copy_(x)])
        return made[1] + 1

    torch.testing.assert_close(vmap(function, in_dim)(X), X.movedim(in_dim, 0) + 1)
    assert made[0].shape == X.select(in_dim, 0).shape  # of a sample; it may be used on


def test_as_tensor_and_asarray_alias():
    def f(x):
        assert torch.as_tensor(x) is x
        torch.asarray(x).add_(1)
        return x

    x = torch.zeros(2, 3)
    vmap(f)(x)
    assert x.eq(1).all()


def test_a_number_does_not_lose_its_gradient():
    b = B.clone().requires_grad_()
    for f in (lambda b: torch.full((2,), b), torch.scalar_tensor, lambda b: torch.zeros(2).new_full((2,), b)):
        with pytest.raises(TypeError, match="requires grad"):
            vmap(f)(b)
    with pytest.raises(TypeError, match="must be Number"):
        vmap(lambda x: torch.full((2,), x))(X)


def test_data_of_uneven_shape():
    with pytest.raises(ValueError, match="only one element tensors"):
        vmap(lambda x: torch.tensor([x[0], x[1]]))(X)
    with pytest.raises(ValueError, match="equal length"):
        vmap(lambda b: torch.tensor([[b], [b, b]]))(B)


@pytest.mark.parametrize(
    "f",
    [
        torch.arange,
        torch.zeros,
        lambda i: torch.zeros(i, 2),
        lambda i: torch.eye(i),
        lambda i: torch.linspace(0, 1, i),
        lambda i: torch.tril_indices(i, 3),
    ],
)
def test_batched_sizes_are_refused(f):
    with pytest.raises((DataDependentError, TypeError)):
        vmap(f)(I)


def test_a_new_tensor_is_the_same_for_all_samples_until_it_is_written_to():
    def function(x):
        one = x.new_ones(())
        assert one.item() == 1  # it does not depend on the sample
        out = x.new_zeros(3)
        out[0] = x[0]
        return one, out

    x = torch.randn(4, 3)
    one, out = vmap(function)(x)
    assert torch.equal(one, torch.ones(4))
    assert torch.equal(out[:, 0], x[:, 0]) and not out[:, 1:].any()
