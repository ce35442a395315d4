"""Nothing stays behind: no input in a cycle, no plan of what has died, no source text of a program."""

import dataclasses
import enum
import gc
import linecache
import sys
import warnings
import weakref
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode, handle_torch_function, wrap_torch_function

from tests.freed import left_alive
from vmap_core import FallbackWarning, capture, check, compile, custom_vmap, explain, sequential_vmap, vmap
from vmap_core.rulekit.keeping import keep, lasts
from vmap_core.rulekit.packs import current_table

# Inputs


def write(x):
    y = torch.zeros(3)
    y[0] = x[1]
    y.add_(x)
    y.view(3, 1).mul_(2)
    return y


def with_gradient(function):
    def run(x):
        x.requires_grad_()
        vmap(function)(x).sum().backward()
        return x.grad

    return run


def swallow(function):
    def run(x):
        try:
            vmap(function)(x)
        except RuntimeError:
            return
        raise AssertionError

    return run


def in_a_mode(x):
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Mode():
        return vmap(torch.sin)(x)


WEIGHT = torch.ones(2, 3, requires_grad=True)
doubled = custom_vmap(lambda x: x * 2)
doubled.def_vmap(lambda info, in_dims, x: (x * 2, in_dims[0]))

USES = {
    "plain": vmap(torch.sin),
    "containers": lambda x: vmap(lambda d: {"a": d["x"] * 2, "b": [d["x"]]})({"x": x}),
    "nested": vmap(vmap(torch.sin)),
    "shared": lambda x: vmap(torch.dot, in_dims=(0, None))(x, x[0]),
    "chunks": vmap(torch.sin, chunk_size=3),
    "measured chunks": vmap(lambda x: x * 2 + 1, chunk_size="auto", memory_budget=50),
    "same draws": vmap(lambda x: x + torch.rand(3), randomness="same", chunk_size=2),
    "different draws": vmap(lambda x: F.dropout(x), randomness="different"),
    "writes": vmap(write),
    "lowered": vmap(lambda x: torch.cdist(x[None], x[None])),
    "lowered, gradients": with_gradient(lambda x: torch.cdist(x[None], x[None] + 1)),
    "in a loop": vmap(lambda x: torch.histc(x, 4)),
    "gradients": with_gradient(lambda x: F.linear(x, WEIGHT)),
    "autocast": vmap(lambda x: torch.autocast("cpu")(F.linear)(x, WEIGHT.detach())),
    "attention": vmap(lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])),
    "a mode": in_a_mode,
    "shown": vmap(lambda x: (repr(x), x)[1]),
    "an error of PyTorch's": swallow(lambda x: x.view(7)),
    "an error of ours": swallow(lambda x: x * bool(x.sum() > 0)),
    "a rule of its own": vmap(doubled),
    "sequential": vmap(sequential_vmap(lambda x: x * 2 if x.sum() > 0 else x)),
    "explain": lambda x: str(explain(vmap(torch.sin))(x)),
    "check": lambda x: str(check(vmap(torch.sin))(x)),
    "capture": lambda x: capture(vmap(torch.sin), x)(x),
    "compile": lambda x: compile(vmap(torch.sin))(x),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.filterwarnings("ignore::vmap_core.FallbackWarning")
def test_inputs_go_without_a_collection(name):
    """Neither the tensor nor its memory is in a cycle, nor kept by a plan of the first call."""
    assert left_alive(USES[name]) == 0


# Functions and classes

X = torch.ones(3, 2)


def of_custom_vmap(held):
    f = custom_vmap(lambda x: x + held.sum())
    f.def_vmap(lambda info, in_dims, x: (x + held.sum(), in_dims[0]))
    vmap(f)(X)


def of_function(held, **attributes):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x + held.sum()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return grad * held.sum()

    for name, value in attributes.items():
        setattr(Function, name, value)
    vmap(Function.apply)(X.clone().requires_grad_())
    x = X.clone().requires_grad_()
    capture(lambda x: Function.apply(vmap(torch.sin)(x)), x)(x)


def of_mapped(transform):
    return lambda held: transform(vmap(lambda x: x + held.sum()))(X)


def class_with(held, *bases):
    return type("Local", bases, {"held": held, "__qualname__": "class_with.<locals>.Local"})


def of_lists(held):
    kind = class_with(held, list)
    vmap(lambda x: torch.cat(kind([x, x])))(X)
    vmap(lambda x: torch.cat([*kind([x, x])]) + torch.stack([x, x]).reshape(kind([4])))(X)
    assert vmap(lambda x: torch.ones(2).new_tensor(kind([1.0, 2.0])) + x)(X).shape == (3, 2)
    assert type(vmap(lambda x: kind([x]))(X)) is kind


def of_named_tuples(held):
    class Pair(NamedTuple):
        a: object
        b: object

    Pair.held = held
    torch.testing.assert_close(vmap(lambda x: torch.stack(Pair(x, x)))(X), torch.ones(3, 2, 2))
    torch.testing.assert_close(vmap(lambda p: p.a + p.b)(Pair(X, X)), 2 * X)


def of_dataclasses(held):
    @dataclasses.dataclass
    class One:
        a: object

    One.held = held
    vmap(lambda x: One(x))(X)
    vmap(lambda one: one.a)(One(X))


def of_numbers(held):
    kind = class_with(held, int)
    vmap(lambda x: x.sum(kind(0)) + kind(2))(X)
    member = enum.IntEnum("Local", {"A": 0}).A
    type(member).held = held
    vmap(lambda x: x.sum(member))(X)


def of_tensors(held):
    kind = class_with(held, torch.Tensor)
    other = torch.ones(2).as_subclass(kind)
    vmap(lambda x: x + other)(X)
    vmap(lambda x: torch.stack([x, other]))(X)


def of_overriding(held):
    kind = class_with(held)
    kind.__torch_function__ = classmethod(lambda cls, func, types, args=(), kwargs=None: args[0])
    vmap(lambda x: torch.add(x, kind()))(X)


def of_overridable(held):
    def f(x):
        if type(x) is not torch.Tensor:
            return handle_torch_function(f, (x,), x) if not seen and not seen.append(x) else x + held.sum()
        return x

    seen = []
    vmap(f)(X)
    seen.clear()

    @wrap_torch_function(lambda x: (x,))
    def g(x):
        return x + held.sum()

    vmap(g)(X)


KINDS = {
    "a closure": of_mapped(lambda f: f),
    "custom_vmap": of_custom_vmap,
    "sequential_vmap": lambda held: vmap(sequential_vmap(lambda x: x + held.sum()))(X),
    "a Function": of_function,
    "a Function, generated": lambda held: of_function(held, generate_vmap_rule=True),
    "a Function with a rule": lambda held: of_function(
        held, vmap=staticmethod(lambda info, in_dims, x: (x + held.sum(), in_dims[0]))
    ),
    "capture": lambda held: capture(vmap(lambda x: x + held.sum()), X)(X),
    "compile": of_mapped(compile),
    "explain": of_mapped(explain),
    "check": of_mapped(check),
    "lists": of_lists,
    "named tuples": of_named_tuples,
    "dataclasses": of_dataclasses,
    "numbers": of_numbers,
    "tensors": of_tensors,
    "overriding types": of_overriding,
    "overridable functions": of_overridable,
}


@pytest.mark.parametrize("name", KINDS)
def test_functions_and_classes_go_with_what_they_hold(name):
    if "Function" in name:
        pytest.importorskip("vmap_autograd")
    refs = []
    for _ in range(4):
        held = torch.zeros(10)
        refs.append(weakref.ref(held))
        KINDS[name](held)
        del held
    gc.collect()
    assert sum(ref() is not None for ref in refs) == 0


def test_custom_vmap_goes_without_a_collection():
    gc.collect()
    gc.disable()
    try:
        refs = []
        for _ in range(100):
            held = torch.zeros(2**20)  # 4 MiB
            refs.append(weakref.ref(held))
            of_custom_vmap(held)
        del held
        assert sum(ref() is not None for ref in refs) == 0
    finally:
        gc.enable()


def test_what_lasts():
    assert all(map(lasts, (torch.Tensor, torch.add, torch.Tensor.add, torch.Tensor.shape.__get__, F.max_pool2d, int)))
    assert all(map(lasts, (of_lists, FallbackWarning, torch.ops.aten.add.Tensor, torch.autograd.Function.apply)))
    assert not any(map(lasts, (lambda: 0, class_with(0), class_with(0)().__init__, custom_vmap(torch.sin))))
    entries = {}
    keep(entries, (torch.add, int, frozenset({float})), 1)
    keep(entries, (torch.add, (class_with(0),)), 2)
    keep(entries, (torch.add, class_with(0, list)), 3)  # what it holds decides, too
    assert list(entries.values()) == [1, 2]
    gc.collect()
    assert list(entries.values()) == [1]


def test_a_local_list_is_planned_by_what_it_holds():
    """Also after a collection, and beside another list that has been met with other elements."""
    kind = class_with(0, list)
    table = torch.arange(9.0).reshape(3, 3)

    def f(i):
        return (
            torch.stack(kind([i, i]))
            + torch.ones(kind([2]))
            + table.reshape(kind([9]))[:2]
            + i.new_tensor([kind([0, 1])])
        )

    i = torch.tensor([2, 0, 1])
    for _ in range(3):
        assert torch.equal(vmap(f)(i), torch.stack([f(k) for k in i]))
        gc.collect()


# Programs


def test_source_text_goes_with_its_program():
    before = len(linecache.cache)
    programs = [capture(vmap(lambda x, i=i: x * i), X) for i in range(5)]
    assert len(linecache.cache) == before + 5
    other = programs[0].run_by(lambda graph_module, inputs: graph_module, X)
    del programs[1:]
    gc.collect()
    assert len(linecache.cache) <= before + 2
    assert programs[0].graph_module.forward.__code__.co_filename in linecache.cache
    del programs
    assert torch.equal(other(X), X * 0)
    with pytest.raises(Exception, match="was captured with"):  # by itself, not by the program it was made from
        other(X.double())
    del other
    gc.collect()
    assert len(linecache.cache) == before


def test_a_program_goes_without_a_collection():
    def programs(held):
        return capture(vmap(lambda x: x + held), X), compile(vmap(lambda x: x * held))

    gc.disable()
    try:
        held = torch.ones(2)
        ref, (program, mapped) = weakref.ref(held), programs(held)
        assert torch.equal(mapped(X), X) and mapped(X.double()).dtype == torch.float64
        del held
        assert ref() is not None and torch.equal(program(X), X + 1)
        del program, mapped
        assert ref() is None
    finally:
        gc.enable()


# Growth


def test_thousands_of_calls_leave_nothing():
    """Counted in Python's objects and blocks, by a mix of all uses."""
    names = [name for name in USES if name not in ("explain", "check", "capture", "compile", "measured chunks")]
    x = torch.randn(4, 3)

    def calls(n):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            for i in range(n):
                USES[names[i % len(names)]](x.detach())
                of_custom_vmap(x)
                of_named_tuples(x)
        gc.collect()
        return len(gc.get_objects()), sys.getallocatedblocks(), len(current_table().plans)

    calls(300)
    before, after = calls(300), calls(1500)
    assert after[0] - before[0] < 100 and after[1] - before[1] < 1000 and after[2] == before[2]
