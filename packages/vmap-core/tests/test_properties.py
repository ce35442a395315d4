"""Property tests: nested inputs and outputs with dims at any place, against the Python loop."""

import dataclasses
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_flatten, tree_unflatten

from vmap_core import vmap
from vmap_core.levels import tree as _tree

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Box:
    content: Any


def containers(children):
    keys = st.sampled_from("abcd")
    pairs = st.dictionaries(keys, children, max_size=3)
    return st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        pairs,
        pairs.map(OrderedDict),
        pairs.map(lambda d: defaultdict(list, d)),
        st.lists(children, max_size=3).map(deque),
        st.tuples(children, children).map(lambda t: Pair(*t)),
    )


BATCH = 3
# a leaf: (rank of a sample, the place of the batch dim or None)
leaf = st.tuples(st.integers(0, 2), st.integers(0, 5)).map(
    lambda t: Leaf(t[0], None if t[1] == 5 else t[1] % (t[0] + 1))
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    rank: int
    bdim: int | None

    def make(self):
        shape = list(range(2, 2 + self.rank))
        if self.bdim is not None:
            shape.insert(self.bdim, BATCH)
        return torch.randn(shape)


def over(function, tree):
    """Map leaves, in place of PyTorch's tree_map, which does not know `Leaf` is one."""
    leaves, spec = tree_flatten(tree)
    return tree_unflatten([function(x) for x in leaves], spec)


@given(tree=st.recursive(leaf, containers, max_leaves=6), data=st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_any_tree_any_dims(tree, data):
    inputs = over(lambda a: a.make(), tree)
    negative = data.draw(st.booleans())
    in_dims = over(lambda a: a.bdim if a.bdim is None or not negative else a.bdim - a.rank - 1, tree)
    out_dims = over(lambda a: data.draw(st.integers(-a.rank - 1, a.rank)), tree)
    if not any(a.bdim is not None for a in tree_flatten(tree)[0]):
        with pytest.raises(ValueError, match="at least one Tensor"):
            vmap(lambda t: t, in_dims=(in_dims,))(inputs)
        return
    chunk = data.draw(st.sampled_from([None, 1, 2]))
    out = vmap(lambda t: over(lambda x: x * 2, t), (in_dims,), out_dims, chunk_size=chunk)(inputs)
    flat, spec = tree_flatten(out)
    assert spec == tree_flatten(inputs)[1]
    leaves, dims, places = (tree_flatten(t)[0] for t in (inputs, tree, out_dims))
    for got, x, a, place in zip(flat, leaves, dims, places, strict=True):
        rows = [x if a.bdim is None else x.select(a.bdim, i) for i in range(BATCH)]
        assert torch.equal(got, torch.stack([r * 2 for r in rows], place))


@given(tree=st.recursive(st.integers(), containers, max_leaves=8))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_flatten_agrees_with_pytorch(tree):
    leaves: list[Any] = []
    spec = _tree.flatten(tree, leaves)
    assert leaves == tree_flatten(tree)[0]
    assert _tree.count(spec) == len(leaves)
    made = _tree.unflatten(spec, iter(leaves))
    assert type(made) is type(tree) and made == tree
    assert _tree.broadcast(7, spec) == [7] * len(leaves)
    assert _tree.broadcast(tree, spec) == leaves


def test_dicts_go_by_key_whatever_their_order_and_kind():
    x = torch.randn(3, 4)
    for kind in (dict, OrderedDict, lambda d: defaultdict(int, d)):
        out = vmap(lambda d: d, in_dims=(kind({"b": 1, "a": 0}),), out_dims=kind({"b": 0, "a": 1}))(
            {"a": x, "b": x.t()}
        )
        assert list(out) == ["a", "b"]  # the function's own order
        assert torch.equal(out["a"], x.t()) and torch.equal(out["b"], x)
    with pytest.raises(ValueError, match="not compatible"):
        vmap(lambda d: d["a"], in_dims=({"a": 0, "c": 0},))({"a": x, "b": x})


def test_dataclasses_keep_what_is_no_field():
    @dataclasses.dataclass
    class Config:
        scale: Any
        unset: Any = dataclasses.field(init=False)

        def __post_init__(self):
            self.extra = 2

    @dataclasses.dataclass(frozen=True, slots=True)
    class Frozen:
        value: Any
        note: str = ""

    x, shared = torch.randn(3, 4), Config(3.0)
    seen = []
    out = vmap(lambda x, c: (seen.append(c), x * c.scale * c.extra)[1], in_dims=(0, None), out_dims=(0,))(x, shared)
    assert seen[0] is shared  # not mapped: passed as it is
    torch.testing.assert_close(out, x * 6)
    torch.testing.assert_close(vmap(lambda c: c.scale * c.extra)(Config(x)), x * 2)
    frozen = vmap(lambda f: Frozen(f.value * 2, f.note), (Frozen(0, None),), Frozen(1, None))
    out = frozen(Frozen(x, "kept"))
    assert isinstance(out, Frozen) and out.note == "kept"
    torch.testing.assert_close(out.value, x.t() * 2)


def test_a_module_that_is_a_dataclass_is_passed_as_it_is():
    @dataclasses.dataclass(eq=False)
    class Model(torch.nn.Module):
        n: int

        def __post_init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, self.n)

        def forward(self, x):
            return self.layer(x)

    model, x = Model(2), torch.randn(3, 4)
    torch.testing.assert_close(vmap(lambda m, v: m(v), in_dims=(None, 0))(model, x), model(x))
    torch.testing.assert_close(vmap(lambda t: t[0](t[1]), in_dims=((None, 0),))((model, x)), model(x))


@pytest.mark.parametrize("in_dims", [0, (0,), (0, None), (-1, 0), (None, 1)])
def test_flat_dims_take_the_short_way_to_the_same_place(in_dims):
    args = (torch.randn(4, 4), torch.randn(4, 4))[: 2 if in_dims != (0,) else 1]
    out = vmap(lambda *a: sum(t.cumsum(0) for t in a), in_dims)(*args)
    dims = (in_dims,) * len(args) if isinstance(in_dims, int) else in_dims
    rows = [[a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True)] for i in range(4)]
    torch.testing.assert_close(out, torch.stack([sum(t.cumsum(0) for t in row) for row in rows]))
