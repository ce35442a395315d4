"""torch.compile(fullgraph=True) and torch.export of code that maps: one graph, with the values of the loop."""

import functools

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import vmap_core
from vmap_core import custom_vmap, vmap

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # the compiler looks at all tensors
    pytest.mark.filterwarnings("ignore:Guards may run slower"),  # on Python 3.13.0
]
X = torch.randn(4, 3)
W = torch.randn(3, requires_grad=True)
LINEAR = nn.Linear(3, 2)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(function, *args, params=(), backend="aot_eager", like=None, **options):
    """Compare a function with itself, compiled; and the gradients of parameters."""
    want = (like or function)(*args)
    got = torch.compile(function, backend=backend, fullgraph=True, **options)(*args)
    torch.testing.assert_close(got, want)
    if params:
        for_got, for_want = (
            torch.autograd.grad(sum(t.sin().sum() for t in torch.utils._pytree.tree_leaves(out)), params)
            for out in (got, want)
        )
        torch.testing.assert_close(for_got, for_want)


class OfSamples(nn.Module):
    """A class compiled around vmap."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout, self.factor = nn.Linear(3, 2), nn.Dropout(0.5), 2.0

    def one(self, x):
        return self.dropout(self.linear(x)).tanh() * self.factor

    def forward(self, x):
        return vmap(self.one, randomness="different")(x)


@custom_vmap
def doubled(x):
    return x * 2


@doubled.def_vmap
def _(info, in_dims, x):
    return x + x, in_dims[0]


def fill(x):
    y = torch.zeros(5)
    y[1:4] = x
    return y.flip(0)


def wrapped_by(f):
    mapped = vmap(f)

    @functools.wraps(mapped)
    def tripled(*args):
        return mapped(*args) * 3

    return tripled


mapped_before = vmap(lambda x: LINEAR(x).tanh())
wrapped_before = wrapped_by(torch.sin)
nested = vmap(vmap(lambda a, b: a * b.sin(), in_dims=(None, 0)), in_dims=(0, None), out_dims=1)

CASES = {
    "an operator": lambda x: vmap(torch.sin)(x) + 1,
    "a method of Tensor": lambda x: vmap(torch.Tensor.sum)(x),
    "a captured tensor": lambda x: vmap(lambda r: (r * x[0]).sum())(x),
    "trees": lambda x: vmap(lambda d, k: {"a": (d["x"] * k, d["y"][0])}, in_dims=({"x": 0, "y": [1]}, None))(
        {"x": x, "y": [x.t()]}, x[0]
    ),
    "dims": lambda x: (
        vmap(lambda r: r.cumsum(0), in_dims=1, out_dims=-1)(x) * vmap(lambda r: r, in_dims=1)(x).stride(0)
    ),
    "kwargs": lambda x: vmap(lambda r, k: r * k, kw_in_dims={"k": 1})(x, k=x.t()) + vmap(lambda r, k: r * k)(x, k=x[0]),
    "chunks": lambda x: vmap(lambda r: r.sin(), chunk_size=3)(x),
    "axis_size": lambda x: vmap(lambda: torch.ones(2), axis_size=3)() * x[0, 0],
    "shared outputs and None": lambda x: vmap(lambda r: (r * 2, None, x[0]), out_dims=(0, None, None))(x),
    "an output given twice": lambda x: vmap(lambda r: (y := r * 2, y, r))(x),
    "an unused input": lambda x: vmap(lambda r, s: r * 2)(x, x + 1),
    "nested": lambda x: vmap(lambda r: nested(r, r * 2))(x),
    "nested in place": lambda x: vmap(lambda r: vmap(lambda s: torch.zeros(2).add_(s))(r))(x),
    "an input written to": lambda x: (y := x.clone(), vmap(lambda r: r.mul_(2))(y), y),
    "part of a new tensor": lambda x: vmap(fill)(x),
    "a branch on shapes": lambda x: vmap(lambda r: r if r.shape == (3,) and r.is_contiguous() else r * 2)(x),
    "a batch of none": lambda x: vmap(torch.sin)(x[:0]),
    "an empty sample": lambda x: vmap(torch.sum)(x[:, :0]),
    "random numbers": lambda x: vmap(lambda r: (r + torch.rand(3)).isfinite(), randomness="different")(x),
    "a rule of its own": lambda x: vmap(doubled)(x),
    "mapped before": lambda x: mapped_before(x) * 2,
    "wrapped": lambda x: wrapped_by(torch.sin)(x) + wrapped_before(x),
    "a partial": lambda x: vmap(functools.partial(torch.add, alpha=2), in_dims=(0, None))(x, x[0]),
    "torch.vmap inside": lambda x: vmap(lambda r: torch.vmap(torch.sin)(r))(x),
    "torch.vmap outside": lambda x: torch.vmap(lambda r: vmap(torch.sin)(r))(x),
    "checkpoint": lambda x: vmap(
        lambda r: torch.utils.checkpoint.checkpoint(lambda s: s.sin().exp(), r, use_reentrant=False)
    )(x),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_what_is_not_compiled(name):
    check(CASES[name], X)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_reach_what_the_function_captures(backend):
    def function(x):
        return vmap(lambda r: {"a": LINEAR(r).relu(), "b": (r * W).sum()})(x * 2)

    x = X.clone().requires_grad_()
    check(function, x, params=[x, W, *LINEAR.parameters()], backend=backend)
    check(mapped_before, X, params=[*LINEAR.parameters()], backend=backend)
    check(vmap(LINEAR), X, params=[*LINEAR.parameters()], backend=backend)


def test_gradients_reach_parameters_given_as_arguments():
    def function(params, x):
        one = vmap(lambda p, r: torch.func.functional_call(LINEAR, p, (r,)), in_dims=(None, 0))
        return one(params, x)

    params = {name: p.detach().clone().requires_grad_() for name, p in LINEAR.named_parameters()}
    check(function, params, X, params=[*params.values()])


def test_a_class_is_guarded():
    """What the function reads in Python, here the mode of a module and a number, is no constant of the graph."""
    model = OfSamples()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert not torch.equal(compiled(X), compiled(X))
    model.eval()
    torch.testing.assert_close(compiled(X), model(X))
    model.factor = 3.0
    torch.testing.assert_close(compiled(X), model(X))
    check(model, X, params=[*model.parameters()])


def test_is_compiled_once():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: vmap(lambda r: LINEAR(r).relu())(x), backend=counter, fullgraph=True, dynamic=True
    )
    for n in (4, 4, 5, 7):
        x = torch.randn(n, 3)
        torch.testing.assert_close(compiled(x), LINEAR(x).relu())
    assert counter.frame_count == 1
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda mapped, x: mapped(x), backend=counter, fullgraph=True)
    for _ in range(3):
        compiled(vmap(lambda r: r.sin()), X)
    assert counter.frame_count == 1


def test_state_of_a_module():
    """A module that assigns to its buffers, as libraries of evolutionary algorithms have it."""

    class Workflow(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(()))
            self.register_buffer("population", torch.zeros(2, 3))
            self.register_buffer("generation", torch.zeros(()))

        def forward(self, towards):
            self.population = self.population + self.rate * (towards - self.population)
            self.generation += 1
            return self.population.square().sum() * self.generation

    workflow = Workflow()

    def step(state, towards):
        out = torch.func.functional_call(workflow, state, (towards,))
        return state, out

    def steps(state, towards):
        mapped = vmap(step, in_dims=(0, None))
        for _ in range(2):
            state, out = mapped(state, towards)
        return state, out

    state = {"rate": torch.rand(4), "population": torch.randn(4, 2, 3), "generation": torch.zeros(4)}
    copies = [{name: t.clone() for name, t in state.items()} for _ in range(2)]
    got = torch.compile(steps, backend="aot_eager", fullgraph=True)(copies[0], X[0])
    torch.testing.assert_close(got, steps(copies[1], X[0]))
    assert not workflow.population.any()


def test_what_it_does_to_objects_comes_once():
    seen = []
    compiled = torch.compile(
        lambda x: vmap(lambda r: (seen.append(r.shape[0]), r * 2)[1])(x), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(X), X * 2)
    assert seen == [3]


class TestErrors:
    def refused(self, function, match):
        with pytest.raises(torch._dynamo.exc.Unsupported, match=match):
            torch.compile(function, backend="eager", fullgraph=True)(X)

    def test_text_and_line(self):
        def draw(r):
            y = r * 2
            return y + torch.rand(3)  # the line

        line = draw.__code__.co_firstlineno + 2
        self.refused(lambda x: vmap(draw)(x), rf"(?s)RandomnessError: .*randomness.*test_one_graph\.py:{line}")
        self.refused(lambda x: vmap(torch.sin, in_dims=3)(x), "ValueError: .*Got in_dim=3")
        self.refused(lambda x: vmap(torch.sin, randomness="no")(x), "Only allowed values for randomness")
        self.refused(lambda x: vmap(lambda r: r)(x, x[0]), "same size in the mapped dimension")

    def test_values(self):
        self.refused(lambda x: vmap(lambda r: r.nonzero())(x), r"needs the value of a tensor at .*test_one_graph\.py")

    def test_escaping(self):
        kept = []
        self.refused(lambda x: vmap(lambda r: (kept.append(r.sin()), r)[1])(x), "Return the tensor")

    def test_a_tensor_that_a_rule_captures(self):
        """It would be a constant of the graph, without a gradient."""

        @custom_vmap
        def scaled(x):
            return x * W

        @scaled.def_vmap
        def _(info, in_dims, x):
            return x.movedim(in_dims[0], 0) * W, 0

        self.refused(lambda x: vmap(scaled)(x), "FakeTensor")

    def test_without_fullgraph_it_breaks_the_graph(self):
        """And there is what there is without the compiler: a value read, or an error."""
        read = torch.compile(lambda x: vmap(lambda r: r * r.new_ones(1).item())(x + 1) * 2, backend="eager")
        torch.testing.assert_close(read(X), (X + 1) * 2)
        differing = torch.compile(lambda x: vmap(lambda r: r.nonzero())(x + 1), backend="eager")
        with pytest.raises(vmap_core.DataDependentError, match="nonzero"):
            differing(torch.eye(3)[:, :2] - 1)

    def test_as_a_method(self):
        class Holder:
            mapped = vmap(lambda self, r: r * 2, in_dims=(None, 0))

        holder = Holder()
        torch.testing.assert_close(torch.compile(lambda x: holder.mapped(x) + 1, backend="eager")(X), X * 2 + 1)


class TestExport:
    @pytest.mark.parametrize("strict", [True, False])
    def test_a_module(self, strict):
        model = OfSamples().eval()
        dim = torch.export.Dim("batch", min=2)
        program = torch.export.export(model, (X,), strict=strict, dynamic_shapes=({0: dim},))
        operators = {node.target for node in program.graph.nodes if node.op == "call_function"}
        assert all(isinstance(op, torch._ops.OpOverload) for op in operators)  # PyTorch's own, and nothing else
        assert set(program.state_dict) == {"linear.weight", "linear.bias"}
        x = torch.randn(7, 3)
        torch.testing.assert_close(program.module()(x), model(x))
        grads = torch.autograd.grad(program.module()(x).sum(), [*program.module().parameters()])
        assert all(g.any() for g in grads)


def test_a_program_that_is_captured_breaks_the_graph():
    program = vmap_core.capture(vmap(torch.cos), X)
    torch.testing.assert_close(torch.compile(lambda x: program(x) * 2, backend="eager")(X), X.cos() * 2)
