"""`capture`: programs against the mapped functions they were captured from, on other values."""

import gc
import warnings
import weakref

import pytest
import torch
from torch.nn import functional as F

from vmap_core import CaptureError, Program, capture, vmap

W = torch.randn(5, 5)


def check(mapped, make, calls=2):
    """Compare a program with the function, on values it was not captured with."""
    program = capture(mapped, *make())
    for _ in range(calls):
        args = make()
        torch.testing.assert_close(program(*args), mapped(*args))
    return program


def one():
    return (torch.randn(4, 5),)


def two():
    return torch.randn(4, 5), torch.randn(4, 5)


def chain(x, y):
    for _ in range(5):
        x = torch.sin(x) * y + 2 / (1 + x.abs())
    return x


def write(x, y):
    out = torch.zeros(5)
    out[1:] = x[1:]
    out[0] += y.sum()
    view = out[2:4]
    view.mul_(3)
    return out


def tree(x, y):
    return {"a": x + 1, "b": [y * 2, (x, None)]}


@pytest.mark.parametrize(
    ("function", "make"),
    [
        (chain, two),
        (write, two),
        (tree, two),
        (lambda x: x - x.mean() / x.std(), one),
        (lambda x: (x.max(0).values, x.argsort(), x.topk(2)), one),
        (lambda x: x.reshape(5, 1).expand(5, 3).transpose(0, 1).flatten()[2:7], one),
        (lambda x: torch.cat([x[1:], x[:1], x[None, 2]]), one),
        (lambda x, i: x[i] + W[i].sum(), lambda: (torch.randn(4, 5), torch.randint(5, (4,)))),
        (lambda x: torch.where(x > 0, x, W[0]).masked_fill(x > 1, 0.0), one),
        (lambda x: F.linear(F.relu(W @ x), W).softmax(-1), one),
        (lambda x: F.layer_norm(x, (5,)).to(torch.float64), one),
        (lambda x: torch.einsum("i,ij,j->", x, W, x), one),
        (lambda x: torch.linalg.solve(x.outer(x) + torch.eye(5), x), one),
        (lambda x: (x + 1j * x.flip(0)).conj() * 2, one),
        (lambda x: torch.tensor([1.0, 2.0]).sum() * x + torch.arange(5), one),
        (lambda x: torch.stack([r * 2 for r in x]), one),
    ],
)
def test_values(function, make):
    program = check(vmap(function), make)
    text = str(program)
    assert "BatchedTensor" not in text and "def forward" in text


def test_straight_line_of_bindings():
    mapped = vmap(lambda x, y: torch.relu(x * y + 0.5).sum())
    mapped(*two())  # from the second time on, a reduction is the operation that its rule was seen to make
    program = capture(mapped, *two())
    assert isinstance(program, Program) and isinstance(program.graph_module, torch.fx.GraphModule)
    calls = [n for n in program.graph_module.graph.nodes if n.op.startswith("call")]
    assert [n.target for n in calls] == [torch.mul, torch.add, torch.relu, torch.sum]


def test_no_vmap_is_left(monkeypatch):
    program = capture(vmap(chain), *two())
    monkeypatch.setattr("vmap_core.levels.level.call", None)
    monkeypatch.setattr("vmap_core.levels.level.push_mode", None)
    monkeypatch.setattr("vmap_core.dispatch.planner.make_plan", None)
    x, y = two()
    torch.testing.assert_close(program(x, y), chain(x, y))


def test_nested():
    def pairs(a, b):
        return vmap(vmap(lambda x, y: (x @ y) / (x.norm() + y.norm()), in_dims=(None, 0)), in_dims=(0, None))(a, b)

    check(pairs, lambda: (torch.randn(4, 5), torch.randn(3, 5)))
    check(vmap(lambda x: vmap(lambda r: r * x.sum())(W)), one)


@pytest.mark.parametrize("size", [0, 1])
def test_batch_sizes(size):
    check(vmap(write), lambda: (torch.randn(size, 5), torch.randn(size, 5)))


def test_dims_keywords_and_trees():
    mapped = vmap(lambda d, *, k: d["x"] * d["y"][0] + k, in_dims=({"x": 1, "y": [None]},), out_dims=1)

    def make():
        return {"x": torch.randn(5, 4), "y": [torch.randn(5)]}

    program = capture(mapped, make(), k=2.0)
    given = make()
    torch.testing.assert_close(program(given, k=2.0), mapped(given, k=2.0))
    with pytest.raises(CaptureError, match="another value for leaf 2"):
        program(given, k=3.0)
    with pytest.raises(CaptureError, match="another structure"):
        program(given)


def test_the_same_tensor_as_argument_and_captured():
    x = torch.randn(5, 5)
    program = capture(vmap(lambda r: r @ x.T), x)
    other = torch.randn(5, 5)
    torch.testing.assert_close(program(other), other @ x.T)
    program = capture(vmap(lambda a, b: a - b), x, x)
    torch.testing.assert_close(program(other, x), other - x)


def test_output_that_is_an_input():
    x = torch.randn(4, 5)
    program = capture(vmap(lambda a: (a, a.shape[0]), out_dims=(0, None)), torch.randn(4, 5))
    out, number = program(x)
    assert out is x and number == 5


def test_memory_of_outputs():
    x = torch.randn(4, 5)
    program = capture(vmap(lambda a: (a[None], a.detach(), a.detach(), a * torch.ones(5))), torch.randn(4, 5))
    view, one_alias, other_alias, product = program(x)
    assert view.data_ptr() == one_alias.data_ptr() == x.data_ptr() != product.data_ptr()
    assert one_alias is not other_alias and one_alias is not x


def test_the_example_is_not_kept():
    example = torch.randn(4, 5)
    gone = weakref.ref(example)
    program = capture(vmap(lambda a: torch.sin(a) * a), example)
    del example
    gc.collect()
    assert gone() is None and program(torch.zeros(4, 5)).sum() == 0


def test_writes_to_arguments():
    mapped = vmap(lambda x: x.add_(1).mul(2))
    program = capture(mapped, torch.zeros(4, 5))
    x = torch.randn(4, 5)
    expected = (x + 1) * 2
    before = x.clone()
    torch.testing.assert_close(program(x), expected)
    torch.testing.assert_close(x, before + 1)


def test_captured_weight_that_an_optimizer_changes():
    layer = torch.nn.Linear(5, 1)
    mapped = vmap(lambda x: layer(x).squeeze())
    program = capture(mapped, *one())
    assert [c is p for c, p in zip(program.captured, layer.parameters(), strict=True)] == [True, True]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(4, 5)
    before = program(x)
    before.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * (before.detach() @ x)[None])
    optimizer.step()
    torch.testing.assert_close(program(x), mapped(x))
    assert not torch.equal(program(x), before)
    layer.weight.requires_grad_(False)
    with pytest.raises(CaptureError, match="captured tensors of another"):
        program(x)


def test_outer_gradients():
    w = torch.randn(5, 5, requires_grad=True)

    def function(x):
        with torch.no_grad():
            scale = (w * 2).sum()
        buffer = torch.zeros(5)
        buffer[2:] = (w @ x)[2:]
        return (buffer * scale + w.detach()[0]).tanh()

    def gradients(mapped, x):
        first = torch.autograd.grad(mapped(x).square().sum(), (w, x), create_graph=True)
        return *first, torch.autograd.grad(first[0].sum(), (w, x))

    program = capture(vmap(function), torch.randn(4, 5, requires_grad=True))
    x = torch.randn(4, 5, requires_grad=True)
    torch.testing.assert_close(gradients(program, x), gradients(vmap(function), x))
    assert torch.is_grad_enabled()


def test_grad_mode_is_restored_after_an_error():
    w = torch.randn(5, requires_grad=True)

    def function(x):
        with torch.no_grad():
            return torch.linalg.cholesky(w.outer(w) * 0 + x)

    program = capture(vmap(function), torch.eye(5).expand(3, 5, 5).contiguous())
    with pytest.raises(torch.linalg.LinAlgError):
        program(-torch.eye(5).expand(3, 5, 5).contiguous())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_random_operations_draw_anew(randomness):
    def function(x):
        return F.dropout(x, 0.5) + torch.rand(5) + torch.empty(5).normal_()

    mapped = vmap(function, randomness=randomness)
    program = capture(mapped, *one())
    (x,) = one()
    torch.manual_seed(1)
    expected = [mapped(x), mapped(x)]
    torch.manual_seed(1)
    got = [program(x), program(x)]
    torch.testing.assert_close(got, expected)
    assert not torch.equal(*got)


def test_the_same_draw_for_parameters_that_differ():
    mapped = vmap(lambda rate: torch.poisson(rate), randomness="same")  # each sample rewinds the generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = capture(mapped, torch.rand(4, 5))
        rates = torch.rand(4, 5) * 5
        torch.manual_seed(1)
        expected = mapped(rates)
    torch.manual_seed(1)
    torch.testing.assert_close(program(rates), expected)
    rows = program(torch.ones(4, 5))
    assert all(torch.equal(rows[0], row) for row in rows)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_chunks(randomness):
    mapped = vmap(lambda x: x + torch.rand(5), randomness=randomness, chunk_size=3)
    program = capture(mapped, *one())
    (x,) = one()
    torch.manual_seed(1)
    expected = mapped(x)
    torch.manual_seed(1)
    torch.testing.assert_close(program(x), expected)
    assert not torch.equal(program(x), expected)


def test_generator_as_argument():
    generator = torch.Generator().manual_seed(0)
    mapped = vmap(lambda x, g: x + torch.rand(5, generator=g), in_dims=(0, None), randomness="different")
    program = capture(mapped, torch.zeros(4, 5), generator)
    generator.manual_seed(3)
    expected = mapped(torch.zeros(4, 5), generator)
    generator.manual_seed(3)
    torch.testing.assert_close(program(torch.zeros(4, 5), generator), expected)


FLAG, WEIGHTS, LEAF = torch.tensor(True), torch.rand(5), torch.ones(5, requires_grad=True)


STATE = torch.get_rng_state()


def _seeds(x):
    torch.set_rng_state(STATE)
    return x + torch.rand(5)


def _own_generator(x):
    return x + torch.rand(5, generator=torch.Generator().manual_seed(0))


def _hooks(x):
    y = LEAF * x
    y.register_hook(lambda g: g * 2)
    return y


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x + 1 if FLAG else x, "reads the value"),
        (lambda x: x * WEIGHTS.sum().item(), "reads the value"),
        (lambda x: x * float(WEIGHTS[0]), "reads the value"),
        (lambda x: x[: int(FLAG)], "reads the value"),
        (lambda x: x if torch.equal(WEIGHTS, WEIGHTS) else -x, "reads the value"),
        (lambda x: x + torch.tensor(WEIGHTS.tolist()), "tolist gives the values"),
        (lambda x: x + torch.from_numpy(WEIGHTS.numpy()), "numpy gives the values"),
        (lambda x: x * WEIGHTS[WEIGHTS > 0.5].sum(), "depends on values"),
        (lambda x: x * WEIGHTS.unique().sum(), "depends on values"),
        (lambda x: F.one_hot((x * 0).long(), 3), "reads the value"),
        (_seeds, "random state"),
        (_own_generator, "Generator"),
        (_hooks, "hook"),
        (lambda x: (LEAF.requires_grad_(False), x)[1], "requires_grad"),
    ],
)
def test_what_cannot_be_captured(function, match):
    try:
        with pytest.raises(CaptureError, match=match) as caught:
            capture(vmap(function, randomness="different"), *one())
    finally:
        LEAF.requires_grad_()
    assert "test_capture.py" in str(caught.value)


def test_an_error_that_the_function_catches():
    def function(x):
        try:
            return x * WEIGHTS.sum().item()
        except RuntimeError:
            return x

    with pytest.raises(CaptureError, match="reads the value"):
        capture(vmap(function), *one())


@pytest.mark.parametrize("sign", [1.0, -1.0])  # samples that agree, and that do not
def test_reads_of_batched_values(sign):
    with pytest.raises(CaptureError, match="reads the value"):
        capture(vmap(lambda x: x if x.sum() > 0 else -x), torch.tensor([[1.0], [sign]]))


def test_not_inside_a_mapped_function():
    with pytest.raises(CaptureError, match="inside a mapped function"):
        vmap(lambda x: capture(vmap(torch.sin), x)(x))(torch.randn(2, 3))


def test_values_may_be_printed(capsys):
    def function(x):
        print(x, WEIGHTS)
        return x * 2

    check(vmap(function), one)
    assert capsys.readouterr().out.count("tensor") >= 2


def test_python_runs_once():
    calls = []

    def function(x):
        calls.append(None)
        return x * len(calls)

    program = capture(vmap(function), *one())
    (x,) = one()
    torch.testing.assert_close(program(x), x)
    torch.testing.assert_close(program(x), x)
    assert len(calls) == 1


def test_arguments_of_another_kind():
    program = capture(vmap(torch.sin), *one())
    for other, match in [
        (torch.randn(3, 5), "shape"),
        (torch.randn(4, 5).double(), "dtype"),
        (torch.randn(5, 4).T, "strides"),
        (torch.randn(4, 5, requires_grad=True), "requires_grad"),
        (3.0, "another value"),
    ]:
        with pytest.raises(CaptureError, match=match):
            program(other)
    with torch.no_grad(), pytest.raises(CaptureError, match="grad mode"):
        program(*one())
    with pytest.raises(CaptureError, match="positional"):
        program(*two())


def test_a_parameter_for_a_tensor():
    program = capture(vmap(torch.sin), torch.randn(4, 5, requires_grad=True))
    x = torch.nn.Parameter(torch.randn(4, 5))
    torch.testing.assert_close(program(x), torch.sin(x))


def test_inside_other_transforms():
    program = capture(vmap(lambda x: torch.sin(x) * x.sum()), *one())
    x = torch.randn(3, 4, 5)
    expected = torch.stack([program(s) for s in x])
    torch.testing.assert_close(vmap(program)(x), expected)


def test_fallback_loop():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(vmap(lambda x: torch.special.bessel_j0(x).sum() + torch.linalg.eigvals(x.outer(x)).abs().max()), one)


@pytest.mark.parametrize("f", [
    lambda x: torch.full((3,), x.sum()), lambda x: torch.pow(x, 2), lambda x: torch.pow(2, x), lambda x: torch.add(x, x, alpha=2),
    lambda x: torch.ones(4).clamp(x.min()), lambda x: torch.where(x > 0, x, 0.0),
])  # fmt: skip
def test_what_pytorchs_parser_asks_of_a_number_is_no_operation(f):
    x = torch.randn(2, 3, 4)
    program = capture(vmap(vmap(f)), x)
    torch.testing.assert_close(program(x), vmap(vmap(f))(x))
