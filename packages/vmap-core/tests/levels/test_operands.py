"""Operands that are no tensors, and methods taken from the class, as torch.Tensor has them."""

import functools
import operator

import numpy as np
import pytest
import torch

from vmap_core import vmap
from vmap_core.levels.head import SAFE

X = torch.arange(1.0, 13.0).reshape(3, 4)
BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "eq", "lt", "ge"]
NUMBERS = [np.int64(2), np.int32(2), np.float64(1.5), np.float32(1.5), np.float16(1.5), np.bool_(True), np.uint8(2)]


def check(f, x, in_dim=0):
    try:
        expected = torch.stack([torch.as_tensor(f(row)) for row in x.movedim(in_dim, 0)])
    except Exception as error:
        with pytest.raises(type(error)):
            vmap(lambda row: torch.as_tensor(f(row)), in_dim)(x)
        return
    for got in (
        vmap(lambda row: torch.as_tensor(f(row)), in_dim)(x),
        vmap(vmap(lambda row: torch.as_tensor(f(row)), in_dim))(x[None])[0],
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.bool])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
def test_numbers_of_numpy(number, dtype):
    for name in BINARY:
        op = getattr(operator, name)
        check(lambda x, op=op: op(x, number), X.to(dtype))
        check(lambda x, op=op: op(number, x), X.to(dtype))


@pytest.mark.parametrize("name", ["iadd", "imul", "itruediv", "ipow"])
def test_in_place(name):
    for number in NUMBERS[:4]:
        check(lambda x, number=number: getattr(operator, name)(x.clone(), number), X)


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # PyTorch's, of any tensor and array
@pytest.mark.parametrize(
    "array", [np.array(2.0), np.array(2, dtype=np.int32), np.ones(4, np.float32), np.ones((2, 4)), np.ones((5, 1))]
)
@pytest.mark.parametrize("in_dim", [0, 1])
def test_arrays(array, in_dim):
    x = X if in_dim == 0 else X.mT.contiguous()
    for name in BINARY:
        check(lambda x, name=name: getattr(operator, name)(x, array), x, in_dim)
    check(lambda x: array + x, x, in_dim)
    check(lambda x: operator.iadd(x.clone(), array), x, in_dim)


def test_as_arguments():
    for f in (
        lambda x: torch.mul(x, np.float64(2)), lambda x: x.view(np.int64(2), 2), lambda x: x.sum(np.int64(0)),
        lambda x: x[np.int64(1)], lambda x: x[np.array([0, 1])], lambda x: x.clamp(np.float32(2), np.float32(3)),
        lambda x: torch.full((2,), np.float32(2)) + x[0], lambda x: x.expand(np.int64(2), 4),
    ):  # fmt: skip
        check(f, X)


METHODS = {
    "sum": torch.Tensor.sum, "partial": functools.partial(torch.Tensor.softmax, dim=0), "in Python": torch.Tensor.norm,
    "partial of a partial": functools.partial(functools.partial(torch.Tensor.sum, dim=0), keepdim=True),
    "operator": torch.Tensor.__neg__,
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_of_the_class(method):
    torch.testing.assert_close(vmap(method)(X), torch.stack([method(x) for x in X]))
    torch.testing.assert_close(vmap(vmap(method))(X[None])[0], torch.stack([method(x) for x in X]))


@pytest.mark.skipif(SAFE is not None, reason="with the safe head it works: BatchedTensor derives from Tensor")
def test_one_inside_says_how_to_write_it():
    with pytest.raises(TypeError) as caught:
        vmap(lambda x: torch.Tensor.sum(x))(X)
    assert "x.sum(), not torch.Tensor.sum(x)" in caught.value.__notes__[0]


def test_as_subclass():
    class Plain(torch.Tensor):
        pass

    f = lambda x: x.as_subclass(Plain).as_subclass(torch.Tensor) * 2  # noqa: E731
    torch.testing.assert_close(vmap(f)(X), X * 2)
    assert type(vmap(lambda x: x.as_subclass(Plain))(X)) is Plain
