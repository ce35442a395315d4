"""What only the vectors map is computed once, and what the function has from elsewhere is still every sample's own."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vmap_autograd import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, linearize, vjp
from vmap_core import vmap


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


W, X, V, T = randn(3, 4), randn(4), randn(5, 3), randn(5, 4)
STATE = {"scale": None}


def f(x):
    return torch.tanh(W @ x)


def scalar(x):
    return f(x).square().sum()


def same(function, *args, in_dims=0, **options):
    """Compare a mapped call with the loop."""
    got = vmap(function, in_dims=in_dims, **options)(*args)
    dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    rows = [[a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True)] for i in range(size)]
    each = [torch.utils._pytree.tree_leaves(function(*row)) for row in rows]
    for ours, theirs in zip(torch.utils._pytree.tree_leaves(got), zip(*each, strict=True), strict=True):
        expected = torch.stack(theirs)
        torch.testing.assert_close(ours, expected)
    return got


TRANSFORMS = {
    "vjp": lambda v, t: vjp(f, X)[1](v),
    "jvp": lambda v, t: jvp(f, (X,), (t,)),
    "hvp by jvp of grad": lambda v, t: jvp(grad(scalar), (X,), (t,)),
    "hvp by grad of a product": lambda v, t: grad(lambda x: (grad(scalar)(x) * t).sum())(X),
    "hvp by vjp of grad": lambda v, t: vjp(grad(scalar), X)[1](t),
    "linearize": lambda v, t: linearize(f, X)[1](t),
    "jvp of vjp": lambda v, t: jvp(lambda v: vjp(f, X)[1](v)[0], (v,), (v * 2,)),
    "vjp of jvp": lambda v, t: vjp(lambda t: jvp(f, (X,), (t,))[1], t)[1](v),
    "jvp in jvp": lambda v, t: jvp(lambda x: jvp(f, (x,), (t,))[1], (X,), (t.cos(),)),
    "jacrev": lambda v, t: jacrev(f)(X) @ t,
    "jacfwd": lambda v, t: jacfwd(f)(X) @ t,
    "hessian": lambda v, t: hessian(scalar)(X) @ t,
    "grad_and_value": lambda v, t: (grad_and_value(scalar)(X), t),
    "torch.func": lambda v, t: (torch.func.vjp(f, X)[1](v), torch.func.jvp(f, (X,), (t,))),
    "one of two": lambda v, t: jvp(lambda x, s: f(x) * s, (X, t[0]), (t, t[1])),
    "a primal of each": lambda v, t: jvp(f, (t,), (X,)),
    "several outputs": lambda v, t: vjp(lambda x: (f(x), x.sum(), W), X)[1]((v, t[0], W)),
    "a constant": lambda v, t: (jvp(lambda x: (f(x), W), (X,), (t,)), vjp(lambda x: W, X)[1](W)),
    "written to": lambda v, t: vjp(f, X)[1](v)[0].mul_(t).add_(1),
    "the value written to": lambda v, t: jvp(f, (X,), (t,))[0].mul_(v),
    "of itself": lambda v, t: vjp(lambda x: x, X)[1](t)[0] * 2 + t,
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [5, 1])
def test_as_the_loop(name, size):
    same(TRANSFORMS[name], V[:size], T[:size])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_another_map(name):
    function = TRANSFORMS[name]
    u = randn(2, 5, 3), randn(2, 5, 4)
    same(vmap(function), *u)
    same(lambda v: vmap(function, in_dims=(None, 0))(v, T), V)  # the vector of one, the tangent of the other
    same(lambda t: vmap(function, in_dims=(0, None))(V, t), T)


class Holder:
    """Has a tensor where only its methods see it."""

    __slots__ = ("inside",)

    def __init__(self, inside):
        self.inside = inside

    def __call__(self, x):
        return f(x) * self.inside

    def method(self, x):
        return self(x)


class Plain:
    def __init__(self, inside):
        self.inside = [{"a": (inside,)}]

    def __call__(self, x):
        return f(x) * self.inside[0]["a"][0]


def of_global(x):
    return f(x) * STATE["scale"]


def with_default(x, s=None):
    return f(x) * s


def of_state(s):
    STATE["scale"] = s
    return of_global


LAYER = nn.Linear(4, 3, dtype=torch.float64)
LAYER.register_buffer("scale", torch.zeros(3))


def of_module(s):
    LAYER.scale = s
    return lambda x: torch.tanh(LAYER(x)) * LAYER.scale


def of_attribute(s):
    def function(x):
        return f(x) * function.scale

    function.scale = s
    return function


def of_iterator(s):
    left = iter([s] * 9)
    return lambda x: f(x) * next(left)


def of_generator(s):
    def each():
        while True:
            yield s

    made = each()
    return lambda x: f(x) * next(made)


HIDING = {
    "closure": lambda s: lambda x: f(x) * s,
    "argument of a partial": lambda s: functools.partial(with_default, s=s),
    "default": lambda s: lambda x, s=s: f(x) * s,
    "object with slots": Holder,
    "method": lambda s: Holder(s).method,
    "containers in an object": Plain,
    "global": of_state,
    "buffer": of_module,
    "attribute of the function": of_attribute,
    "iterator": of_iterator,
    "generator": of_generator,
    "wrapped": lambda s: functools.lru_cache(Holder(s).method),
    "inner function": lambda s: lambda x: (lambda: f(x) * s)(),
}


@pytest.mark.parametrize("how", HIDING)
def test_what_a_function_has_from_elsewhere_is_each_sample_s(how):
    hide = HIDING[how]
    same(lambda v, t: vjp(hide(v.sin()), X)[1](v), V, T)
    same(lambda v, t: jvp(hide(v.sin()), (X,), (t,)), V, T)
    same(lambda v, t: grad(lambda x: hide(v.sin())(x).sum())(X), V, T)
    same(lambda v, t: jacrev(hide(v.sin()))(X), V, T)
    same(lambda v, t: jacfwd(hide(v.sin()))(X), V, T)
    same(lambda v, t: linearize(hide(v.sin()), X)[1](t), V, T)


class Clipped(torch.autograd.Function):
    """A backward that is not linear."""

    @staticmethod
    def forward(x):
        return x * 3

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.1, 0.1) * 3

    @staticmethod
    def jvp(ctx, t):
        return t * 5


def hooked(x):
    y = x * 1
    y.register_hook(lambda g: g.clamp(-0.1, 0.1))
    return f(y)


def partly_without_grad(x):
    with torch.no_grad():
        y = x * 2
    return f(x + y)


def checkpointed(x):
    return torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False)


def backward_inside(x):
    y = x.detach().requires_grad_()
    f(y).sum().backward()
    return f(x) * y.grad[:3]


ASKING = {
    "custom Function": lambda x: f(Clipped.apply(x)),
    "hook": hooked,
    "no_grad": partly_without_grad,
    "checkpoint": checkpointed,
    "backward": backward_inside,
}


@pytest.mark.parametrize("name", ASKING)
def test_what_asks_for_a_graph_of_its_own(name):
    function = ASKING[name]
    same(lambda v, t: vjp(function, X)[1](v), V, T)
    same(lambda v, t: grad(lambda x: function(x).sum())(X), V, T)
    same(lambda v, t: jacrev(function)(X), V, T)
    if name in ("custom Function", "no_grad"):
        same(lambda v, t: jvp(function, (X,), (t,)), V, T)


def test_random_numbers_of_each_sample():
    def noisy(v):
        return vjp(lambda x: f(x) * torch.rand(3, dtype=x.dtype), X)[1](v)[0]

    rows = vmap(noisy, randomness="different")(V[:1].expand(3, 3))
    assert not torch.equal(rows[0], rows[1])
    rows = vmap(noisy, randomness="same")(V[:1].expand(3, 3))
    assert torch.equal(rows[0], rows[1])


def test_integer_outputs_and_none():
    same(lambda t: jvp(lambda x: (f(x), x.argmax()), (X,), (t,)), T)


def test_formulas_that_have_no_derivative():
    def function(x):
        return F.hardsigmoid(W @ x), (x * 2).sum()

    same(lambda t: jvp(function, (X,), (t,)), T)
    same(lambda t: linearize(function, X)[1](t), T)
    same(lambda v, t: jvp(lambda x: F.hardsigmoid(v * (W @ x)), (X,), (t,)), V, T)
    same(lambda v: vmap(lambda t: jvp(lambda x: F.hardsigmoid(v * (W @ x)), (X,), (t,)))(T), V)


def test_an_empty_batch():
    assert vmap(lambda t: jvp(f, (X,), (t,))[1])(T[:0]).shape == (0, 3)
    assert vmap(lambda v: vjp(f, X)[1](v)[0])(V[:0]).shape == (0, 4)


def test_gradients_flow_through():
    w = randn(3, 4).requires_grad_()

    def total(w, way):
        if way == "vjp":
            return lambda v, t: vjp(lambda x: torch.tanh(w @ x), X)[1](v)[0]
        if way == "jvp":
            return lambda v, t: jvp(lambda x: torch.tanh(w @ x), (X,), (t,))[1]
        return lambda v, t: grad(lambda x: torch.tanh(w @ x).sum())(X)

    for way in ("vjp", "jvp", "grad"):
        ours = torch.autograd.grad(vmap(total(w, way))(V, T).square().sum(), w)[0]
        rows = torch.stack([total(w, way)(v, t) for v, t in zip(V, T, strict=True)])
        torch.testing.assert_close(ours, torch.autograd.grad(rows.square().sum(), w)[0])
