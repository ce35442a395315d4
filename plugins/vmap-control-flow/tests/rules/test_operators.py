"""torch.cond, while_loop, scan and map in mapped functions, against Python's own if and while in the loop."""

import warnings

import pytest
import torch
from torch._higher_order_ops import associative_scan, while_loop
from torch._higher_order_ops.map import map as each
from torch._higher_order_ops.scan import scan

import vmap_core
from vmap_core import CaptureError, InplaceError, RandomnessError, vmap

torch.manual_seed(0)
X, W = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)


def python_cond(pred, true_fn, false_fn, operands=()):
    return true_fn(*operands) if pred else false_fn(*operands)


def python_while(cond_fn, body_fn, carried):
    while cond_fn(*carried):
        carried = tuple(body_fn(*carried))
    return carried


def python_scan(combine_fn, init, xs, *, reverse=False):
    out = []
    for x in xs.flip(0) if reverse else xs:
        init, y = combine_fn(init, x)
        out.append(y)
    return init, torch.stack(out[::-1] if reverse else out)


class Operators:
    cond, while_loop, scan, map, associative_scan = map(
        staticmethod, (torch.cond, while_loop, scan, each, associative_scan)
    )


class Python:
    cond, while_loop, scan = map(staticmethod, (python_cond, python_while, python_scan))

    @staticmethod
    def map(f, xs, *args):
        return torch.stack([f(x, *args) for x in xs])

    @staticmethod
    def associative_scan(f, xs, dim, combine_mode):
        return torch.stack([xs[: i + 1].prod(0) for i in range(len(xs))])


def in_a_loop(o, v):
    def step(a):
        return (o.cond(a.sum() > v.sum(), lambda a: a * 1.5, lambda a: a * 2 + v, (a,)),)

    return o.while_loop(lambda a: a.norm() < 10, step, (v,))[0]


class Layer(torch.nn.Module):
    """It holds a tensor of the sample, which no closure shows."""

    def __init__(self, v):
        super().__init__()
        self.v = v

    def forward(self, a):
        return a + self.v


FUNCTIONS = {
    "cond": lambda o, v: o.cond(v.sum() > 0, torch.sin, torch.neg, (v,)),
    "cond, shared": lambda o, v: o.cond(W.sum() > 0, lambda v: v.sin(), lambda v: -v, (v,)),
    "cond, closures": lambda o, v: o.cond(v.sum() > 0, lambda u: u * v, lambda u: u - W[0], (v,)),
    "cond, an object": lambda o, v: o.cond(v.sum() > 0, Layer(v), lambda u: u * 2, (v * 3,)),
    "cond, no operands": lambda o, v: o.cond(v.sum() > 0, lambda: v * 2, lambda: v[:1] + W[0], ()),
    "cond, a captured result": lambda o, v: o.cond(v.sum() > 0, lambda v: v.clone(), lambda v: W[0].clone(), (v,)),
    "cond, a matrix": lambda o, v: o.cond(v.sum() > 0, lambda v: W @ v, lambda v: v.outer(v) @ v, (v,)),
    "cond, in-place": lambda o, v: o.cond(v.sum() > 0, lambda u: (u * 1).add_(1), lambda u: u.clone().zero_(), (v,)),
    "cond in cond": lambda o, v: o.cond(
        v.sum() > 0, lambda u: o.cond(v[0] > 0, lambda u: u + v, lambda u: v - 1, (u,)), lambda u: v * 2, (v,)
    ),
    "gradient of the side that is taken": lambda o, v: o.cond(
        v[0] > 0, lambda v: v[0].sqrt() * v, lambda v: v * 1.0, (v,)
    ),
    "while_loop": lambda o, v: o.while_loop(lambda a: a.norm() < 10, lambda a: (a * 1.5,), (v,))[0],
    "while_loop, counter": lambda o, v: o.while_loop(
        lambda i, a: (i < 3) & (a.sum() < 2), lambda i, a: (i + 1, a * 2), (torch.tensor(0), v)
    )[1],
    "while_loop, closures": lambda o, v: o.while_loop(lambda a: a.norm() < 10, lambda a: (a + v,), (v,))[0],
    "while_loop, never": lambda o, v: o.while_loop(lambda a: a.norm() < 0, lambda a: (a + v,), (v,))[0] * 1,
    "while_loop, counted alike": lambda o, v: o.while_loop(
        lambda i, a: i < 3, lambda i, a: (i + 1, a * 2), (torch.tensor(0), v)
    )[1],
    "cond in while_loop": in_a_loop,
    "scan": lambda o, v: o.scan(lambda c, y: (c + y, c * y), torch.zeros((), dtype=v.dtype), v)[1],
    "scan, reverse": lambda o, v: o.scan(lambda c, y: (c * y, c + y), v.sum(), v, reverse=True)[1],
    "scan, recurrent": lambda o, v: o.scan(
        lambda c, y: (torch.tanh(W @ c + y), c.sum()), torch.zeros(3, dtype=v.dtype), v.expand(4, 3)
    )[0],
    "map": lambda o, v: o.map(lambda y, w: y.sin() * w, v, v.sum()),
    "associative_scan": lambda o, v: o.associative_scan(lambda a, b: a * b, v, 0, combine_mode="generic"),
}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", FUNCTIONS)
def test_against_the_loop(name):
    f = FUNCTIONS[name]
    ours, loops = lambda v: f(Operators, v), lambda v: f(Python, v)
    expected = torch.stack([loops(v) for v in X])
    assert torch.allclose(vmap(ours)(X), expected, rtol=1e-12)
    assert torch.allclose(vmap(ours, in_dims=1, out_dims=1)(X.t()), expected.t(), rtol=1e-12)
    assert torch.allclose(vmap(ours)(X[:1]), expected[:1], rtol=1e-12)
    assert vmap(ours)(X[:0]).shape == (0, *expected.shape[1:])
    twice = torch.stack([X, 2 * X, -X])
    expected = torch.stack([torch.stack([loops(v) for v in x]) for x in twice])
    assert torch.allclose(vmap(vmap(ours))(twice), expected, rtol=1e-12)
    assert torch.allclose(vmap(vmap(ours), in_dims=1, out_dims=1)(twice), expected, rtol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    f = FUNCTIONS[name]
    leaf = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(torch.stack([f(Python, v) for v in leaf]).sin().sum(), leaf)
    (outer,) = torch.autograd.grad(vmap(lambda v: f(Operators, v))(leaf).sin().sum(), leaf)

    def gradient(v):
        v = v.detach().requires_grad_()
        return torch.autograd.grad(f(Operators, v).sin().sum(), v)[0]

    assert torch.allclose(outer, expected) and outer.isfinite().all()
    assert torch.allclose(vmap(gradient)(X), expected)


@pytest.mark.parametrize("depends", ["outer", "inner", "both"])
def test_a_condition_on_one_of_two_levels(depends):
    def f(o, p, v):
        condition = {"outer": p, "inner": v, "both": p * v}[depends].sum() > 0
        out = o.cond(condition, lambda v: v * 2 + p, lambda v: v - p, (v,))
        return o.while_loop(lambda a: a.norm() < 3 + condition.double(), lambda a: (a * 2 + p * v,), (out,))[0]

    expected = torch.stack([torch.stack([f(Python, p, v) for v in X]) for p in X])
    got = vmap(lambda p: vmap(lambda v: f(Operators, p, v))(X))(X)
    assert torch.allclose(got, expected)
    assert torch.allclose(vmap(vmap(lambda p, v: f(Operators, p, v), (None, 0)), (0, None))(X, X), expected)


def test_only_the_samples_that_take_a_branch_run_it():
    rows = []

    def branch(v):
        rows.append(v._value.shape[0])
        return v * 1

    x = torch.tensor([1.0, -1, 2, -2, 3])
    vmap(lambda v: torch.cond(v > 0, branch, branch, (v,)))(x)
    assert rows == [3, 2]
    rows.clear()
    vmap(lambda v: while_loop(lambda a: a < 10, lambda a: (branch(a) * 2,), (v,))[0])(torch.tensor([1.0, 4, 20]))
    assert rows == [2, 2, 1, 1]


def test_several_results():
    def f(v):
        return torch.cond(
            v.sum() > 0, lambda v: {"a": v, "b": (v.sum(), v > 0)}, lambda v: {"a": -v, "b": (v[0], v < 0)}, (v,)
        )

    out = vmap(f)(X)
    expected = [{"a": v, "b": (v.sum(), v > 0)} if v.sum() > 0 else {"a": -v, "b": (v[0], v < 0)} for v in X]
    assert torch.equal(out["a"], torch.stack([e["a"] for e in expected]))
    assert torch.allclose(out["b"][0], torch.stack([e["b"][0] for e in expected]))
    assert torch.equal(out["b"][1], torch.stack([e["b"][1] for e in expected]))


def test_writes_out_of_a_branch_are_refused():
    def to_new(v):
        out = torch.zeros(3)
        torch.cond(v.sum() > 0, lambda: out.add_(1), lambda: out * 1, ())
        return out

    def to_operand(v):
        return torch.cond(v.sum() > 0, lambda u: u.add_(1), lambda u: u * 1, (v * 1,))

    def to_view(v):
        u = v * 1
        return torch.cond(v.sum() > 0, lambda: u[:1].mul_(2), lambda: u[:1] * 1, ())

    for f in (to_new, to_operand, to_view):
        for x in (X, X[:2] * torch.tensor([[1.0], [-1.0]]) * X[:2].sum(1, keepdim=True).sign()):
            with pytest.raises(InplaceError, match=r"test_operators.py:\d+"):
                vmap(f)(x)


def test_randomness():
    def f(v):
        return torch.cond(v > 0, lambda v: v + torch.rand(()), lambda v: v - torch.rand(()), (v,))

    x = torch.tensor([1.0, -1, 2, -2]).repeat(64)
    out = (vmap(f, randomness="different")(x) - x).abs()
    assert out.unique().numel() > 200 and 0 <= out.min() and out.max() < 1
    with pytest.raises(RandomnessError, match="in a branch that not all samples take"):
        vmap(f, randomness="same")(x)
    with pytest.raises(RandomnessError):
        vmap(f)(x)
    same = vmap(f, randomness="same")(x.abs())
    assert (same - x.abs()).unique().numel() <= 2


def test_what_cannot_be_said():
    with pytest.raises(RuntimeError, match="results differ"):
        vmap(lambda v: torch.cond(v.sum() > 0, lambda u: u * 1, lambda u: u.float(), (v,)))(X)
    with pytest.raises(RuntimeError, match="differ in structure"):
        vmap(lambda v: torch.cond(v.sum() > 0, lambda u: (u * 1,), lambda u: u * 1, (v,)))(X)
    with pytest.raises(CaptureError, match="goes by a condition that differs"):
        vmap_core.capture(vmap(lambda v: torch.cond(v.sum() > 0, torch.sin, torch.cos, (v,))), X)
    program = vmap_core.capture(vmap(lambda v: scan(lambda c, y: (c + y, c * y), v.sum(), v)[1]), X)
    assert torch.allclose(program(2 * X), vmap(lambda v: scan(lambda c, y: (c + y, c * y), v.sum(), v)[1])(2 * X))


def test_chunks_and_autocast():
    def f(v):
        return torch.cond(v.sum() > 0, lambda u: W.float() @ u, lambda u: u * 2, (v,))

    x = X.float()
    expected = torch.stack([W.float() @ v if v.sum() > 0 else v * 2 for v in x])
    assert torch.allclose(vmap(f, chunk_size=2)(x), expected, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        got = vmap(lambda v: torch.cond(v.sum() > 0, lambda u: W.float() @ u, lambda u: W.float().t() @ u, (v,)))(x)
    assert got.dtype is torch.bfloat16
