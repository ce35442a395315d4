"""The transform: what goes in, what comes out, and what it says when they do not fit, beside the peer."""

import dataclasses
import functools
import re
import threading
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmap_core import DataDependentError, EscapedTensorError, InplaceError, RandomnessError, UnsupportedError, vmap
from vmap_core.levels.stack import current_levels

X = torch.arange(12.0).reshape(3, 4)


def test_every_kind_of_callable():
    module = torch.nn.Linear(4, 2)

    class Thing:
        def method(self, x):
            return x * 2

    @vmap
    def decorated(x):
        """A docstring."""
        return x.sum()

    assert decorated.__doc__ == "A docstring." and decorated.__name__ == "decorated"
    assert torch.equal(decorated(X), X.sum(1))
    assert torch.equal(vmap(Thing().method)(X), X * 2)
    assert torch.equal(vmap(functools.partial(torch.mul, 3))(X), X * 3)
    assert torch.equal(vmap(lambda x: x)(X), X)
    torch.testing.assert_close(vmap(module)(X), module(X))


def test_nested_inputs_and_outputs():
    def f(a, b):
        (x, y), d = a, b["k"][0]
        return {"s": x + y, "t": [d, (x,)]}

    a, b = (X, X.t()), OrderedDict(k=[X])
    out = vmap(f, in_dims=((0, 1), OrderedDict(k=[0])), out_dims={"s": 1, "t": [0, (-1,)]})(a, b)
    assert torch.equal(out["s"], (X + X).t())
    assert torch.equal(out["t"][0], X) and torch.equal(out["t"][1][0], X.t())


class Pair(NamedTuple):
    a: torch.Tensor
    b: object


@dataclasses.dataclass
class Data:
    a: torch.Tensor
    b: object = None


def test_containers_pass_in_and_out():
    out = vmap(lambda p, d: (Pair(p.a + 1, None), Data(d.a * 2, p.a), torch.max(p.a, 0)))(Pair(X, X), Data(X, X))
    assert isinstance(out[0], Pair) and out[0].b is None and torch.equal(out[0].a, X + 1)
    assert isinstance(out[1], Data) and torch.equal(out[1].a, X * 2)
    assert type(out[2]) is torch.return_types.max and torch.equal(out[2].values, X.max(1).values)


def test_keywords():
    assert torch.equal(vmap(lambda x, k: x + k)(X, k=X[0]), X + X[0])  # shared
    assert torch.equal(vmap(lambda x, *, k: x + k, kw_in_dims={"k": 1})(X, k=X.t()), X + X)
    assert torch.equal(vmap(lambda *, k: k["a"], kw_in_dims={"k": {"a": 0}})(k={"a": X}), X)


def test_axis_size():
    assert vmap(lambda: torch.ones(2), axis_size=3)().shape == (3, 2)
    assert vmap(lambda x: x, in_dims=None, axis_size=2)(X[0]).shape == (2, 4)
    with pytest.raises(ValueError, match="same size in the mapped dimension"):
        vmap(lambda x: x, axis_size=2)(X)


def test_outputs_alias_inputs():
    out = vmap(lambda x: x)(X)
    assert out.data_ptr() == X.data_ptr()
    view = vmap(lambda x: x[1:].unsqueeze(0), in_dims=1)(X)
    assert view._base is X or view.data_ptr() == X[1:].data_ptr()
    assert vmap(lambda x: torch.zeros(5))(X).stride() == (0, 1)  # expanded


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
def test_chunks(size, chunk):
    x = torch.randn(4, size, 2)
    out = vmap(lambda x: (x.t() * 2, torch.ones(2), x.sum(0)), in_dims=1, out_dims=(2, None, -1), chunk_size=chunk)(x)
    assert torch.equal(out[0], x.permute(2, 0, 1) * 2)
    assert torch.equal(out[1], torch.ones(2))
    torch.testing.assert_close(out[2], x.sum(0).t())


def test_chunks_share_randomness_under_same():
    out = vmap(lambda x: torch.rand(2), randomness="same", chunk_size=2)(torch.zeros(5))
    assert (out == out[0]).all()


def test_nesting_with_captures():
    a, b, c = torch.randn(2, 5), torch.randn(3, 5), torch.randn(4, 5)
    out = vmap(lambda x: vmap(lambda y: vmap(lambda z: (x * y * z).sum() + x[0])(c))(b))(a)
    torch.testing.assert_close(out, torch.einsum("ai,bi,ci->abc", a, b, c) + a[:, 0, None, None])


def test_stack_unwinds_on_exceptions():
    def inner(x):
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        vmap(lambda x: vmap(inner)(x))(X)
    assert current_levels() == []


def test_threads_have_their_own_levels():
    results = {}

    def work(k):
        for _ in range(50):
            results[k] = vmap(lambda x: vmap(lambda y: y * k)(x))(X)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(torch.equal(results[k], X * k) for k in range(4))


def test_an_escaped_tensor_names_its_level():
    kept = []

    def leaky(x):
        kept.append(x)
        return x

    vmap(leaky)(X)
    for use in (lambda t: t + 1, torch.sin, lambda t: t.sum(), lambda t: vmap(lambda x: x + t)(X)):
        with pytest.raises(EscapedTensorError, match="leaky.*tensor may have escaped"):
            use(kept[0])
    assert "dead" in repr(kept[0])


def test_repr_inside():
    seen = []
    vmap(lambda x: vmap(lambda y: seen.append(repr(y)) or y)(x))(X)
    assert seen[0].count("BatchedTensor") == 2 and "bdim=0" in seen[0]


def call(vmap_, fn, args, kwargs):
    try:
        vmap_(fn, **kwargs)(*args)
    except Exception as error:
        return error
    return None


CASES = {
    "no inputs": (torch.mul, (), {}),
    "list in_dims": (torch.mul, (X, X), {"in_dims": [0, 0]}),
    "in_dims too short": (torch.mul, (X, X), {"in_dims": (0,)}),
    "in_dims of wrong type": (torch.mul, (X, X), {"in_dims": (0, "a")}),
    "a number to map": (torch.mul, (X, 2.0), {}),
    "nothing mapped": (torch.mul, (X, X), {"in_dims": (None, None)}),
    "sizes differ": (torch.mul, (X, X.t()), {}),
    "dim out of range": (torch.mul, (X, X), {"in_dims": (0, 7)}),
    "scalar": (torch.sin, (torch.tensor(1.0),), {}),
    "in_dims None": (torch.mul, (X, X), {"in_dims": None}),
    "nested in_dims": (lambda x: x[0], ((X, X),), {"in_dims": ((0, 1, 2),)}),
    "out_dims of wrong type": (torch.mul, (X, X), {"out_dims": "a"}),
    "too many out_dims": (torch.mul, (X, X), {"out_dims": (0, 1)}),
    "out_dims structure": (lambda x: {"a": x}, (X,), {"out_dims": {"b": 0}}),
    "too few out_dims": (lambda x: (x, x), (X,), {"out_dims": (0,)}),
    "out_dim out of range": (torch.mul, (X, X), {"out_dims": 7}),
    "float output": (lambda x: 1.0, (X,), {}),
    "string output": (lambda x: (x, "a"), (X,), {}),
    "batched output for None": (lambda x: x, (X,), {"out_dims": None}),
    "partial": (functools.partial(lambda a, b: 1.0, 2), (X,), {}),
    "bad randomness": (lambda x: x, (X,), {"randomness": "maybe"}),
    "bad chunk": (lambda x: x, (X,), {"chunk_size": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_messages_are_the_peers(name):
    expected, got = call(torch.vmap, *CASES[name]), call(vmap, *CASES[name])
    assert expected is not None
    # words: tensordict, where it has been imported, breaks the peer's lines elsewhere
    assert type(got) is type(expected) and str(got).split() == str(expected).split()


INSIDE = {
    "random": (lambda x: torch.rand(3), RandomnessError),
    "item": (lambda x: x.sum().item(), DataDependentError),
    "if": (lambda x: x if x.sum() > 20 else -x, DataDependentError),
    "nonzero": (lambda x: x.nonzero(), DataDependentError),
}


@pytest.mark.parametrize("name", INSIDE)
def test_messages_from_inside_start_as_the_peers(name):
    function, kind = INSIDE[name]
    expected, got = call(torch.vmap, function, (X,), {}), call(vmap, function, (X,), {})
    assert type(got) is kind and isinstance(got, type(expected))
    text = str(expected).partition(". If error")[0]
    if torch.__version__ < "2.13":  # where it sends one for help is another place
        text = re.split("[,.] please", text, flags=re.IGNORECASE)[0]
    assert str(got).startswith(text)
    assert "test_transform.py:" in str(got)  # where in the user's code


@pytest.mark.parametrize("op", ["addcmul_", "lerp_", "masked_fill_", "clamp_", "add_", "copy_"])
def test_inplace_message_is_the_peers(op):
    plain = torch.zeros(4)
    arguments = {"addcmul_": lambda x: (x, x), "lerp_": lambda x: (x, 0.5), "masked_fill_": lambda x: (plain > 0, x[0])}

    def function(x):
        return getattr(plain, op)(*arguments.get(op, lambda x: (x,))(x))

    expected, got = (call(v, function, (X,), {}) for v in (torch.vmap, vmap))
    assert isinstance(got, InplaceError) and type(expected) is RuntimeError
    if f"aten::{op}" in str(expected):  # the peer has other words for add_ (a shape) and copy_ ("inplace arithmetic")
        assert str(got).startswith(str(expected))
    assert "is not possible because there exists a Tensor `other` in extra_args" in str(got)


@given(
    shape=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_in_dims_and_out_dims(shape, data):
    """vmap over any dim, result to any place, is movedim."""
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    in_dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    out_dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    shared = data.draw(st.booleans())
    out = vmap(lambda a, b: {"x": a * 1, "b": (b,)}, (in_dim, None if shared else in_dim), {"x": out_dim, "b": (0,)})(
        x, x
    )
    assert torch.equal(out["x"], x.movedim(in_dim, out_dim))
    size = x.shape[in_dim]
    expected = x.expand(size, *x.shape) if shared else x.movedim(in_dim, 0)
    assert torch.equal(out["b"][0], expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"in_dims": ({"x": 0},)}])
def test_a_nested_tensor_is_refused(layout, options):
    batch = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=layout)
    wrapped = {"x": batch} if "in_dims" in options else batch
    with pytest.raises(UnsupportedError, match=r"nested tensor.*to_padded_tensor"):
        vmap(lambda s: torch.ones(1), **options)(wrapped)
