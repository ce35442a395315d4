"""What counts as a container in the arguments of a call: one definition, for every walker."""

import dataclasses
from collections import OrderedDict, UserList, defaultdict, deque, namedtuple
from typing import NamedTuple

import pytest
import torch
from torch.utils._pytree import register_pytree_node
from torch.utils.checkpoint import checkpoint

from vmap_core import check, compile, vmap
from vmap_core.extend import leaves, make_batched, map_leaves
from vmap_core.levels.args import any_batched, has_tensor, holds_batched, rebuild, unwrap, wrap
from vmap_core.levels.containers import children, map_with_dims
from vmap_core.levels.level import Level
from vmap_core.rulekit.packs import current_table


class Pair(NamedTuple):
    a: object
    b: object


class ListOf(list):
    """A list with an attribute."""

    unit = None


class Slots(list):
    __slots__ = ()

    def __init__(self, first, second):
        super().__init__((first, second))


class TupleOf(tuple):
    def __new__(cls, first, second):
        return super().__new__(cls, (first, second))


class DictOf(dict):
    pass


class Box:
    def __init__(self, first, second):
        self.held = [first, second]


register_pytree_node(Box, lambda box: (box.held, None), lambda held, _: Box(*held))


@dataclasses.dataclass(frozen=True)
class Record:
    first: object
    second: object


CONTAINERS = {
    "list": lambda x, y: [x, y],
    "tuple": lambda x, y: (x, y),
    "dict": lambda x, y: {"a": x, 1: y},
    "OrderedDict": lambda x, y: OrderedDict(b=x, a=y),
    "defaultdict": lambda x, y: defaultdict(list, b=x, a=y),
    "deque": lambda x, y: deque([x, y]),
    "NamedTuple": Pair,
    "namedtuple": namedtuple("Plain", "x y"),
    "subclass of list": lambda x, y: ListOf([x, y]),
    "subclass of list with its own __init__": Slots,
    "subclass of tuple": TupleOf,
    "subclass of dict": lambda x, y: DictOf(b=x, a=y),
    "torch.return_types": lambda x, y: torch.return_types.sort((x, y)),
    "registered class": Box,
    "dataclass": Record,
    "nested": lambda x, y: [ListOf([{"a": Pair(x, (3, "text"))}]), (), TupleOf(None, y)],
}
SEQUENCES = ["tuple", "NamedTuple", "subclass of list", "subclass of tuple"]


@pytest.fixture(params=CONTAINERS)
def container(request):
    return CONTAINERS[request.param]


@pytest.fixture
def level():
    return Level(3, "error", current_table())  # off the stack, as rules see it


def structure(x):
    """Types of all containers and leaves, keys of dicts."""
    held = children(x)
    if held is None:
        return type(x)
    return type(x), list(x) if isinstance(x, dict) else None, [structure(a) for a in held]


def test_leaves_come_in_order_and_map_leaves_keeps_the_containers(container):
    x, y = torch.ones(2), torch.zeros(3)
    tree = container(x, y)
    found = list(leaves(tree))
    assert [id(a) for a in found if isinstance(a, torch.Tensor)] == [id(x), id(y)]
    again = map_leaves(lambda a: a, tree)
    assert structure(again) == structure(tree)
    assert all(a is b for a, b in zip(leaves(again), found, strict=True))
    doubled = map_leaves(lambda a: a.double() if isinstance(a, torch.Tensor) else a, tree)
    assert [a.dtype for a in leaves(doubled) if isinstance(a, torch.Tensor)] == [torch.float64] * 2
    assert all(a is b for a, b in zip(leaves(tree), found, strict=True))  # the one given stays as it was


def test_leaves_of_what_is_no_container():
    plain = (
        None, "text", 1, 2.5, 1j, True, ..., slice(1, 2), torch.float32, torch.device("cpu"), torch.Size([2, 3]),
        torch.strided, torch.ones(2), torch.nn.Parameter(torch.ones(2)), int, Record, {1, 2}, range(3), UserList([1]),
    )  # fmt: skip
    for x in plain:
        assert children(x) is None
        assert list(leaves(x)) == [x] if not isinstance(x, torch.Tensor) else next(leaves(x)) is x
        assert map_leaves(lambda a: (a,), x)[0] is x


def test_attributes_and_what_does_not_change_are_kept():
    tree = ListOf([torch.ones(2), 3])
    tree.unit = "m"
    assert map_leaves(lambda a: a, tree) is tree
    other = map_leaves(lambda a: 2 * a, tree)
    assert type(other) is ListOf and other.unit == "m" and other[1] == 6 and tree[1] == 3
    record = Record(1, "text")
    assert map_leaves(lambda a: a, record) is record
    made = map_leaves(lambda a: 0, defaultdict(int, a=1))
    assert made["missing"] == 0 and list(made) == ["a", "missing"]


def test_batched_tensors_are_found_split_and_wrapped(container, level):
    value, shared = torch.ones(2, 3), torch.ones(4)
    tree = container(make_batched(value, 1, level), shared)
    assert has_tensor((1, tree)) and holds_batched((1, tree)) and holds_batched({"k": tree}.values())
    assert any_batched(level, (tree,), {}) and any_batched(level, (), {"k": tree})
    (values,), (dims,), batched = unwrap(level, (tree,))
    assert batched and structure(values) == structure(container(value, shared))
    found = [a for a in leaves(values) if isinstance(a, torch.Tensor)]
    assert found[0] is value and found[1] is shared
    again = wrap(level, values, dims)
    assert structure(map_leaves(lambda a: None, again)) == structure(map_leaves(lambda a: None, tree))
    first, second = (a for a in leaves(again) if isinstance(a, torch.Tensor))
    assert first._value is value and first._bdim == 1
    assert second._value is shared and second._bdim is None
    everywhere = [a for a in leaves(wrap(level, values, 0)) if isinstance(a, torch.Tensor)]
    assert [a._bdim for a in everywhere] == [0, 0]


def test_containers_without_tensors_stay_the_objects_that_they_are(container, level):
    tree = container(1, "text")
    (value,), dims, batched = unwrap(level, (tree,))
    assert value is tree and dims == [None] and not batched
    assert not has_tensor((tree,)) and not holds_batched((tree,)) and not any_batched(level, (tree,), {"k": tree})


def test_shared_tensors_are_tensors_but_not_batched(container, level):
    tree = container(torch.ones(2), make_batched(torch.ones(2), None, level))
    assert has_tensor((tree,)) and holds_batched((tree,)) and not any_batched(level, (tree,), {})
    assert not unwrap(level, (tree,))[2]


def test_dims_by_child_and_by_key():
    seen = []
    map_with_dims(lambda a, d: seen.append((a, d)), [{"a": 1, "b": [2, 3]}, (4, 5)], [{"b": [7, None], "a": 6}, 8])
    assert seen == [(1, 6), (2, 7), (3, None), (4, 8), (5, 8)]
    with pytest.raises(ValueError):
        map_with_dims(lambda a, d: a, [1, 2], [0])


def test_rebuild_makes_the_same_container_from_other_children(container):
    tree = container(1, 2)
    items = ["x"] * len(children(tree))
    made = rebuild(tree, items)
    assert type(made) is type(tree) and list(children(made)) == items


# in calls, against the loop


def equals_the_loop(function, *args, in_dims=0):
    report = check(vmap(function, in_dims=in_dims))(*args)
    assert report, report


@pytest.mark.parametrize(
    "function",
    [
        torch.cat, torch.concat, torch.stack, torch.hstack, torch.vstack, torch.dstack, torch.column_stack,
        torch.ops.aten.hstack.default, torch.ops.aten.cat.default,
        lambda tensors: torch.block_diag(*tensors), lambda tensors: torch.cartesian_prod(*tensors),
        lambda tensors: torch.stack(torch.meshgrid(tensors, indexing="ij")),
        lambda tensors: torch.stack(torch.atleast_2d(tensors)),
        lambda tensors: torch.cat(tensors=tensors, dim=0),
        lambda tensors: torch._foreach_add(list(tensors), tensors)[0],
        lambda tensors: torch.nn.utils.parameters_to_vector(tensors),
        lambda tensors: torch.einsum("i,j->ij", tensors),
    ],
)  # fmt: skip
def test_functions_of_sequences(function):
    for name in SEQUENCES:
        make = CONTAINERS[name]
        equals_the_loop(
            lambda x, y, make=make: function(make(x, y)), torch.randn(3, 4), torch.randn(4, 3), in_dims=(0, 1)
        )
        equals_the_loop(lambda x, make=make: function(make(torch.ones(4), x)), torch.randn(3, 4))


def test_shared_sequences_run_once():
    out = vmap(lambda x: x + torch.hstack(Pair(torch.ones(2), torch.zeros(2))))(torch.ones(3, 4))
    assert out.tolist() == [[2, 2, 1, 1]] * 3


def test_a_size_is_no_container_of_tensors():
    equals_the_loop(lambda x: x.expand(torch.Size([2, 4])) + torch.zeros(torch.Size([2, 4])), torch.randn(3, 4))


def test_python_data_in_sequences():
    equals_the_loop(lambda x: torch.tensor(ListOf([x[0], Pair(x[1], 2.0)[0]])), torch.randn(3, 4))


def by_entries(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return tensors["a"] * 2 + tensors["b"]


def test_scripted_functions_of_dicts_and_lists():
    scripted = torch.jit.script(by_entries)
    equals_the_loop(lambda x, y: scripted({"a": x, "b": y}), torch.randn(3, 4), torch.randn(3, 4))
    equals_the_loop(lambda x: scripted({"a": torch.ones(4), "b": x}), torch.randn(3, 4))


def test_out_of_a_dead_level_in_containers():
    kept = []
    vmap(lambda x: (kept.append(torch.ones(4)), x)[1])(torch.randn(3, 4))
    assert torch.hstack(Pair(kept[0], kept[0])).tolist() == [1.0] * 8


def test_autocast_of_sequences():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vmap(lambda x: torch.cat(Pair(x, x.double())))(torch.randn(3, 4))
    assert out.dtype == torch.float64 and out.shape == (3, 8)


class Scaled(torch.autograd.Function):
    """Takes its factors in a container, which autograd does not look into."""

    @staticmethod
    def forward(ctx, x, factors):
        assert type(factors) in (Pair, DictOf)
        first, second = factors if type(factors) is Pair else factors.values()
        ctx.save_for_backward(first)
        return x * first * second

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


class Batched(Scaled):
    """With a rule of its own."""

    @staticmethod
    def vmap(info, in_dims, x, factors):
        assert type(factors) in (Pair, DictOf)
        first, second = factors if type(factors) is Pair else factors.values()
        x_dim, dims = in_dims
        first_dim, _ = dims if type(factors) is Pair else dims.values()
        return x.movedim(x_dim, 0) * first.movedim(first_dim, 0) * second, 0


@pytest.mark.parametrize("function", [Scaled, Batched])
@pytest.mark.parametrize("make", [Pair, lambda a, b: DictOf(a=a, b=b)])
def test_function_of_a_container(function, make):
    pytest.importorskip("vmap_autograd")
    equals_the_loop(lambda x, y: function.apply(x, make(y, 2.0)), torch.randn(3, 4), torch.randn(3, 4))


def test_gradients_of_named_tuples():
    pytest.importorskip("vmap_autograd")

    def gradients(x, y):
        own = Pair(x.detach().requires_grad_(), y.detach().requires_grad_())
        outs = Pair(own.a * own.b, own.a.exp())
        vectors = ListOf([torch.ones(4), y.detach()])
        return torch.stack(torch.autograd.grad(outs, own, vectors))

    equals_the_loop(gradients, torch.randn(3, 4), torch.randn(3, 4))


@pytest.mark.parametrize("make", [lambda a, b: DictOf(a=a, b=b), Pair, Record])
def test_checkpoint_of_a_container(make):
    pytest.importorskip("vmap_autograd")

    def part(x, given):
        first, second = children(given)
        return (x * first).sin() * second

    def function(x, y):
        x = x.detach().requires_grad_()
        out = checkpoint(part, x, make(y, x * 2), use_reentrant=False)
        return torch.autograd.grad(out.sum(), x)[0]

    equals_the_loop(function, torch.randn(3, 4), torch.randn(3, 4))


@pytest.mark.parametrize("name", [n for n in CONTAINERS if n != "nested"])
def test_inputs_and_outputs_are_the_same_containers(name):
    make = CONTAINERS[name]
    x, y = torch.randn(3, 4), torch.randn(3)

    def function(given):
        assert type(given) is type(make(x, y))
        first, second = children(given)
        return make(first * second, second)

    out = vmap(function)(make(x, y))
    assert structure(out) == structure(make(x, y))
    torch.testing.assert_close(list(leaves(out)), [x * y[:, None], y])
    compiled = compile(vmap(function))
    for _ in range(3):
        torch.testing.assert_close(list(leaves(compiled(make(x, y)))), [x * y[:, None], y])
    assert compiled.cache_info().misses == 1


def test_a_dict_by_key_for_a_subclass_of_dict():
    x, y = torch.randn(3, 4), torch.randn(4)
    out = vmap(lambda given: given["b"] + given["a"], in_dims=({"a": None, "b": 0},))(DictOf(b=x, a=y))
    torch.testing.assert_close(out, x + y)
