"""Checkpoints in modules that have other parameters meanwhile: what is computed again finds those."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.freed import left_alive
from vmap_autograd import grad, jacrev, jvp, linearize, per_sample_grads, vjp
from vmap_core import vmap

D = torch.double
torch.manual_seed(0)

PARTS = {
    "none": lambda m, x: m.part(x),
    "method": lambda m, x: checkpoint(m.part, x, use_reentrant=False),
    "module": lambda m, x: checkpoint(m.inner, x, use_reentrant=False) * m.scale,
    "nested": lambda m, x: checkpoint(lambda x: checkpoint(m.part, x, use_reentrant=False), x, use_reentrant=False),
    "sequential": lambda m, x: checkpoint_sequential(m.inner, 2, x, use_reentrant=False) * m.scale,
    "reentrant": lambda m, x: checkpoint(m.part, x, use_reentrant=True),
}


class Model(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.register_buffer("scale", torch.rand(2, dtype=D))
        self.how = how

    def part(self, x):
        return self.inner(x) * self.scale

    def forward(self, x):
        return PARTS[self.how](self, x).tanh()


X = torch.randn(5, 3, dtype=D)
MEMBERS = [Model("none") for _ in range(3)]


def call(model, state, x):
    return functional_call(model, state, (x,))


def by_members(model, state, run):
    """run(model, state) with gradients for the stacked parameters."""
    leaves = {k: v.detach().clone().requires_grad_(k != "scale") for k, v in state.items()}
    run(model, leaves).square().sum().backward()
    return [v.grad for v in leaves.values() if v.requires_grad]


USES = {
    "per sample": lambda m, s: per_sample_grads(m, lambda out: out.square().sum())(X),
    "a gradient outside": lambda m, s: by_members(m, s, lambda m, s: vmap(lambda s: call(m, s, X))(s)),
    "a gradient outside, over x too": lambda m, s: by_members(
        m, s, lambda m, s: vmap(lambda s: vmap(lambda x: call(m, s, x))(X))(s)
    ),
    "a gradient outside, over x first": lambda m, s: by_members(
        m, s, lambda m, s: vmap(lambda x: vmap(lambda s: call(m, s, x))(s))(X)
    ),
    "a gradient inside": lambda m, s: vmap(grad(lambda s: call(m, s, X).square().sum()))(s),
    "a gradient at two levels": lambda m, s: vmap(
        lambda s: vmap(lambda x: grad(lambda s: call(m, s, x).square().sum())(s))(X)
    )(s),
    "a batch of one": lambda m, s: vmap(grad(lambda s: call(m, s, X[0]).square().sum()))(
        {k: v[:1] for k, v in s.items()}
    ),
    "another in_dim": lambda m, s: vmap(grad(lambda s: call(m, s, X).square().sum()), in_dims=-1)(
        {k: v.movedim(0, -1) for k, v in s.items()}
    ),
    "shared parameters": lambda m, s: vmap(
        grad(lambda s, x: call(m, s, x).square().sum()), in_dims=(None, 0)
    )({k: v[1] for k, v in s.items()}, X),
    "backward inside": lambda m, s: vmap(lambda s, x: gradient_of_input(m, s, x))(s, X[:3]),
    "jacrev": lambda m, s: vmap(lambda s: jacrev(lambda x: call(m, s, x))(X))(s),
    "vjp": lambda m, s: vmap(lambda s: vjp(lambda s: call(m, s, X), s)[1](X[:, :2])[0])(s),
    "vjp of the mapped": lambda m, s: vjp(lambda s: vmap(lambda s: call(m, s, X[0]))(s), s)[1](X[:3, :2])[0],
    "linearize": lambda m, s: vmap(lambda s: linearize(lambda x: call(m, s, x), X)[1](X))(s),
    "a second derivative": lambda m, s: vmap(
        lambda s: grad(lambda x: grad(lambda x: call(m, s, x).square().sum())(x).square().sum())(X)
    )(s),
}  # fmt: skip

if not torch.__version__.startswith("2.11"):  # whose checkpoint() has no forward mode
    USES["jvp"] = lambda m, s: vmap(lambda s: jvp(lambda x: call(m, s, x), (X,), (X,))[1])(s)


def gradient_of_input(model, state, x):
    x = x.detach().clone().requires_grad_()
    call(model, state, x).square().sum().backward()
    return x.grad


@pytest.fixture
def state():
    params, buffers = stack_module_state(MEMBERS)
    return {k: v.detach() for k, v in {**params, **buffers}.items()}


def models(how):
    plain, again = Model("none"), Model(how)
    again.load_state_dict(plain.state_dict())
    return plain, again


@pytest.mark.parametrize("how", ["method", "module", "nested", "sequential"])
@pytest.mark.parametrize("use", USES)
def test_equals_no_checkpoint(use, how, state):
    plain, again = models(how)
    before = {k: v.clone() for k, v in again.state_dict().items()}
    torch.testing.assert_close(USES[use](again, state), USES[use](plain, state))
    assert all(torch.equal(v, before[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("use", ["a gradient outside", "a gradient inside"])
def test_reentrant_in_a_graph_of_inputs(use, state):
    """With use_reentrant=True the parameters get gradients of a backward() alone, and inputs must require them."""
    plain, again = models("reentrant")

    def one(model, state):
        state = {k: v.detach().clone().requires_grad_() for k, v in state.items()}
        x = X.clone().requires_grad_()
        call(model, state, x).square().sum().backward()
        return [x.grad, *(v.grad for v in state.values())]

    if use == "a gradient inside":
        torch.testing.assert_close(vmap(lambda s: one(again, s))(state), vmap(lambda s: one(plain, s))(state))
        return
    results = []
    for model in (plain, again):
        x = torch.stack([X, X * 2, X * 3]).requires_grad_()
        vmap(lambda s, x, model=model: call(model, s, x))(state, x).square().sum().backward()
        results.append(x.grad)
    torch.testing.assert_close(*results)


def test_only_some_are_swapped(state):
    plain, again = models("method")
    weight = state["inner.0.weight"]
    results = [vmap(grad(lambda w, m=m: call(m, {"inner.0.weight": w}, X).sum()))(weight) for m in (plain, again)]
    torch.testing.assert_close(*results)


def test_what_the_module_has_assigned_meanwhile(state):
    """A checkpoint finds what is in a module when it begins, not what functional_call() had put there."""

    class Assigns(Model):
        def forward(self, x):
            self.scale = self.scale * 2
            return super().forward(x)

    plain, again = Assigns("none"), Assigns("method")
    again.load_state_dict(plain.state_dict())
    results = [vmap(grad(lambda s, m=m: call(m, dict(s), X).sum()))(state) for m in (plain, again)]
    torch.testing.assert_close(*results)


def test_parameters_go_without_a_collection():
    layer = nn.Linear(3, 2)
    again = lambda x: checkpoint(layer, x, use_reentrant=False)  # noqa: E731

    def use(x):
        bias = torch.ones(2, requires_grad=True)
        mapped = vmap(
            lambda w: functional_call(Calls(layer, again), {"layer.weight": w.expand(2, 3), "layer.bias": bias}, (w,))
        )
        mapped(x.requires_grad_()).sum().backward()

    assert left_alive(use) == 0


class Calls(nn.Module):
    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(x)
