"""Results, error classes and texts beside the peer's, call by call."""

from collections import OrderedDict, namedtuple

import pytest
import torch

from vmap_core import vmap

X = torch.arange(12.0).reshape(3, 4)
Pair = namedtuple("Pair", "a b")


class Callable:
    def __call__(self, x):
        return 1.0

    def __repr__(self):
        return "Callable()"


def identity(x):
    return x


def fails(x):
    return {}["key"]


CALLS = {
    "identity is the input": lambda v: v(identity)(X) is X,
    "captured output": lambda v: v(lambda x: X, out_dims=None)(X) is X,
    "number for out_dims None": lambda v: v(lambda x: (x, 1.0), out_dims=(0, None))(X),
    "bool out_dims": lambda v: v(identity, out_dims=True)(X),
    "out_dims list for a tensor": lambda v: v(identity, out_dims=[0])(X),
    "out_dims tuple for a tensor": lambda v: v(identity, out_dims=(0,))(X),
    "out_dims nested": lambda v: v(lambda x: (x,), out_dims=((0,),))(X),
    "out_dims float": lambda v: v(identity, out_dims=1.0)(X),
    "out_dims string in a tuple": lambda v: v(lambda x: (x, x), out_dims=(0, "a"))(X),
    "list output": lambda v: v(lambda x: [x, x])(X),
    "tuple out_dims for a list": lambda v: v(lambda x: [x, x], out_dims=(0, 0))(X),
    "empty output": lambda v: v(lambda x: ())(X),
    "set output": lambda v: v(lambda x: {1})(X),
    "empty list": lambda v: v(lambda a, x: x)([], X),
    "empty dict": lambda v: v(identity)({}),
    "set": lambda v: v(identity)({1}),
    "string": lambda v: v(identity)("x"),
    "None": lambda v: v(identity)(None),
    "None with None": lambda v: v(lambda n, x: x, in_dims=(None, 0))(None, X),
    "array": lambda v: v(identity)(X.numpy()),
    "tuple in_dims for a namedtuple": lambda v: v(lambda p: p.a, in_dims=((0, 0),))(Pair(X, X)),
    "namedtuple": lambda v: v(lambda p: p.a + p.b, in_dims=(Pair(0, 0),))(Pair(X, X)),
    "return type": lambda v: v(lambda m: m.values * 2)(torch.max(X, 1)),
    "dict in another order": lambda v: v(lambda d: d["a"], in_dims=({"b": 0, "a": 0},))({"a": X, "b": X}),
    "dict for an OrderedDict": lambda v: v(lambda d: d["a"], in_dims=({"a": 0},))(OrderedDict(a=X)),
    "dict with other keys": lambda v: v(lambda d: d["a"], in_dims=({"b": 0},))({"a": X}),
    "dict with missing keys": lambda v: v(lambda d: d["a"], in_dims=({"a": 0},))({"a": X, "b": X}),
    "scalar, last dim": lambda v: v(identity, in_dims=-1)(torch.tensor(1.0)),
    "negative dim out of range": lambda v: v(identity, in_dims=-3)(X),
    "three sizes": lambda v: v(lambda *a: a[0])(X, X.t(), X),
    "only keywords": lambda v: v(identity)(x=X),
    "first of two errors": lambda v: v(lambda x, y: x, in_dims=(0, 5))(2, X),
    "out_dims before inputs": lambda v: v(identity, out_dims="a")(),
    "out_dims before in_dims": lambda v: v(identity, in_dims=[0], out_dims="a")(X),
    "randomness before chunk_size": lambda v: v(identity, randomness="x", chunk_size=0),
    "randomness None": lambda v: v(identity, randomness=None),
    "chunk_size of wrong type": lambda v: v(identity, chunk_size="a"),
    "chunk_size is no positional": lambda v: type(v(identity, 0, 0, "error", 2)),
    "no function": lambda v: v(None)(X),
    "module": lambda v: v(torch.nn.Linear(4, 2), in_dims=[0])(X),
    "callable without a name": lambda v: v(Callable())(X),
    "bound method": lambda v: v(X.add)(X),
    "class": lambda v: v(dict)(X),
    "an exception of the function's own": lambda v: v(fails)(X),
    "boolean mask": lambda v: v(lambda x: x[x > 3])(X),
    "boolean mask of another": lambda v: v(lambda x: torch.ones(4)[x > 3])(X),
    "set of values": lambda v: v(lambda x: (x > 5).unique())(X),
}
EXTENDED = {"boolean mask", "boolean mask of another", "set of values"}  # data-dependent shapes: texts of our own


def outcome(call, transform):
    try:
        return repr(call(transform))
    except Exception as error:
        # words: tensordict, where it has been imported, breaks the peer's lines elsewhere
        return type(error), str(error).replace("vmap() ", "").split()


@pytest.mark.parametrize("name", CALLS)
def test_same_outcome_as_the_peer(name):
    expected, got = outcome(CALLS[name], torch.vmap), outcome(CALLS[name], vmap)
    if name in EXTENDED:
        assert (
            issubclass(got[0], expected[0])
            and "test_messages.py:" in " ".join(got[1])
            and "Instead" in " ".join(got[1])
        )
    else:
        assert got == expected


BETTER = {
    "None output": lambda v: v(lambda x: (x, None))(X)[1] is None,
    "empty batch in chunks": lambda v: v(lambda x: x * 2, chunk_size=2)(X[:0]).shape == (0, 4),
    "one-tuple out_dims in chunks": lambda v: torch.equal(v(lambda x: x * 2, out_dims=(0,), chunk_size=2)(X), X * 2),
    "out_dims None in chunks": lambda v: torch.equal(v(lambda x: X, out_dims=None, chunk_size=2)(X), X),
    "keywords named as vmap's own": lambda v: torch.equal(
        v(lambda x, func, in_dims, args: x * func)(X, func=2, in_dims=0, args=()), X * 2
    ),
}


@pytest.mark.parametrize("name", BETTER)
def test_where_the_peer_fails(name):
    assert BETTER[name](vmap)
    with pytest.raises(Exception):  # noqa: B017  # once the peer can, this belongs above
        assert BETTER[name](torch.vmap)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"axis_size": -1}, ValueError, "axis_size should be None or at least 0"),
        ({"axis_size": "3"}, TypeError, "cannot be interpreted as an integer"),
        ({"axis_size": 2}, ValueError, r"same size in the mapped dimension, got sizes \[3, 2\]"),
        ({"kw_in_dims": [0]}, ValueError, "kw_in_dims should be None or a dict"),
        ({"kw_in_dims": {"typo": 0}}, ValueError, "got no keyword argument 'typo'"),
        ({"kw_in_dims": {"k": 5}}, ValueError, r"kw_in_dims=\{'k': 5\}.*expected in_dim to satisfy -2 <= in_dim < 2"),
        ({"kw_in_dims": {"k": (0, 0)}}, ValueError, "not compatible with the structure"),
    ],
)
def test_supersets_explain_themselves(arguments, kind, text):
    with pytest.raises(kind, match=text):
        vmap(lambda x, k: x + k, **arguments)(X, k=X)
