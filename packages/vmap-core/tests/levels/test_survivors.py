"""What was made inside a mapped function and outlives it: a plain tensor if the samples share it, else an error in every use."""

import copy
import functools
import io
import operator
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from vmap_core import EscapedTensorError, UnsupportedError, vmap

X = torch.arange(12.0).reshape(3, 4)


def kept(make, *, depth=1):
    """Return what a function makes of nothing, inside one or two mapped functions."""
    box = []
    f = lambda x: (box.append(make()), x)[1]  # noqa: E731
    (vmap(f) if depth == 1 else vmap(vmap(f)))(X)
    return box[0]


def saved_and_loaded(x):
    file = io.BytesIO()
    torch.save({"x": x}, file)
    file.seek(0)
    return torch.load(file)["x"]


def stepped(x):
    p = nn.Parameter(x.float())
    optimizer = torch.optim.Adam([p], lr=0.5)
    (p * 3).sum().backward()
    optimizer.step()
    return p.detach()


def in_a_module(x):
    module = nn.Linear(2, 2)
    module.register_buffer("mask", x)
    copied = copy.deepcopy(module)
    return copied.state_dict()["mask"] + module.mask


USES = {
    "index": lambda i: X[i],
    "index of a Parameter": lambda i: nn.Parameter(X)[i],
    "index_select": lambda i: X.index_select(0, i),
    "assignment": lambda i: operator.setitem(y := X.clone(), i, 0.0) or y,
    "arithmetic": lambda i: i + 1,
    "on the right": lambda i: X[:, :2] * i,
    "a number of numpy": lambda i: i + np.int64(2),
    "an array": lambda i: torch.as_tensor(i * np.array([1.5, 2.5])),
    "a list": lambda i: torch.stack([i, i]),
    "the next vmap": lambda i: vmap(lambda x: x[i] + i)(X),
    "the next vmap's input": lambda i: vmap(lambda k: X[k])(i),
    "torch.func": lambda i: torch.func.vmap(lambda k: k * 2)(i),
    "Parameter": lambda i: nn.Parameter(i.float()).detach(),
    "Parameter, data": lambda i: nn.Parameter(i, requires_grad=False).data,
    "optimizer": stepped,
    "buffer": in_a_module,
    "pickle": lambda i: pickle.loads(pickle.dumps(i)),
    "save": saved_and_loaded,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "dlpack": torch.from_dlpack,
    "numpy": lambda i: torch.from_numpy(i.numpy()),
    "Tensor": lambda i: torch.Tensor(i.float()),
    "tensor": lambda i: torch.tensor(i.tolist()),
    "new": lambda i: i.new_zeros(2),
    "written": lambda i: i.clone().add_(1),
    "as_subclass": lambda i: i.as_subclass(torch.Tensor),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.filterwarnings("ignore:__array_wrap__")  # PyTorch's, of any tensor and array
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_the_samples_share_is_a_plain_tensor(use, depth):
    got, expected = use(kept(lambda: torch.arange(2), depth=depth)), use(torch.arange(2))
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(got, expected)


def test_it_is_a_tensor_to_python():
    x = kept(lambda: torch.ones(2))
    assert isinstance(x, torch.Tensor) and torch.is_tensor(x) and not isinstance(x, nn.Parameter)
    assert isinstance(kept(lambda: nn.Parameter(torch.ones(2))), nn.Parameter)
    assert x.shape == (2,) and x.dtype == torch.float32 and x.is_contiguous() and x.tolist() == [1.0, 1.0]


class Caching(nn.Module):
    """Keeps a mask: made in the first call, of a size or of a sample."""

    def __init__(self, make):
        super().__init__()
        self.make, self.mask = make, None

    def forward(self, x):
        if self.mask is None:
            self.mask = self.make(x)
        return x.masked_fill(~self.mask, 0)


@pytest.mark.parametrize("make", [
    lambda x: torch.ones(x.shape, dtype=torch.bool).tril(),
    lambda x: torch.ones_like(x, dtype=torch.bool).tril(),
    lambda x: x.new_ones(x.shape, dtype=torch.bool).tril(),
    lambda x: torch.arange(x.shape[1]) <= torch.arange(x.shape[0])[:, None],
])  # fmt: skip
def test_a_cache_filled_inside_serves_from_then_on(make):
    x, module = torch.randn(4, 3, 3), Caching(make)
    for _ in range(2):
        torch.testing.assert_close(vmap(module)(x), x.tril())
    torch.testing.assert_close(module(x[0]), x[0].tril())
    torch.testing.assert_close(vmap(vmap(module))(x[None]), x[None].tril())


def test_lru_cache():
    @functools.lru_cache
    def positions(n):
        return torch.arange(n)

    expected = X + torch.arange(4)
    assert torch.equal(vmap(lambda x: x + positions(4))(X), expected)
    assert torch.equal(vmap(lambda x: x + positions(4))(X), expected)
    assert torch.equal(X[positions(4)[:2]], X[:2])


@pytest.mark.parametrize("name", [name for name in USES if name != "new"])  # that takes no value from it
def test_a_batched_one_has_escaped(name):
    box = []
    vmap(lambda x: (box.append(x.long()), x)[1])(X[:, :2])
    with pytest.raises((EscapedTensorError, UnsupportedError)):
        USES[name](box[0])


def test_copies_inside():
    c = torch.arange(4.0)
    for f in (
        lambda x: copy.copy(x) * 2,
        lambda x: copy.deepcopy(x) * 2,
        lambda x: x * copy.deepcopy(c),
        lambda x: x * copy.copy(c),
    ):
        torch.testing.assert_close(vmap(f)(X), torch.stack([f(x) for x in X]))

    def written(x):
        y = copy.copy(x.clone())
        z = copy.deepcopy(c)
        z.add_(y)
        return z

    torch.testing.assert_close(vmap(written)(X), torch.stack([written(x) for x in X]))
    assert torch.equal(c, torch.arange(4.0))


def test_an_exchange_inside_is_refused():
    with pytest.raises(UnsupportedError, match="dlpack of a batched tensor"):
        vmap(torch.from_dlpack)(X)
    with pytest.raises(UnsupportedError, match="pickle of a batched tensor"):
        vmap(pickle.dumps)(X)
