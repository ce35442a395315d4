"""torch.compile(fullgraph=True) and torch.export of code that calls the transforms: one graph, with its gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vmap_autograd
from vmap_autograd import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, linearize, per_sample_grads, vjp
from vmap_core import UnsupportedError, vmap

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # the compiler looks at all tensors
    pytest.mark.filterwarnings("ignore:Guards may run slower"),  # on Python 3.13.0
]
torch.manual_seed(0)
X, Y = torch.randn(4, 3), torch.randn(4, 2)
W = torch.randn(3, requires_grad=True)
LINEAR = nn.Linear(3, 2)
NET = nn.Sequential(LINEAR, nn.Tanh(), nn.Linear(2, 1))
PARAMS = {"W": W, **dict(NET.named_parameters())}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss(x):
    return NET(x * W).square().sum()


def pulled(x):
    out, vjp_fn = vjp(lambda r: LINEAR(r * W).tanh(), x[0])
    return out, vjp_fn(out), vmap(vjp_fn)(torch.eye(2))


def pushed(x):
    out, jvp_fn = linearize(lambda r: LINEAR(r * W).tanh(), x[0])
    return out, jvp_fn(x[1]), vmap(jvp_fn)(x)


def rows(x):
    y = (x[0] * W).sin()
    return vmap(lambda v: torch.autograd.grad(y, W, v, create_graph=True)[0])(torch.eye(3))


def under_no_grad(x):
    with torch.no_grad():
        return vmap(grad(lambda r: (r**3).sum() if torch.is_grad_enabled() and r.requires_grad else r.sum()))(x)


def by_parameters(x):
    return vmap(
        grad_and_value(lambda p, r, y: F.mse_loss(torch.func.functional_call(LINEAR, p, (r,)), y)), in_dims=(None, 0, 0)
    )(dict(LINEAR.named_parameters()), x, Y)


gradients_before = vmap(grad(loss))
per_sample_before = per_sample_grads(LINEAR, F.mse_loss, norms=True)

CASES = {
    "grad": lambda x: grad(loss)(x[0]),
    "grad of each sample": lambda x: vmap(grad(loss, has_aux=False))(x),
    "grad, made before": lambda x: gradients_before(x) * 2,
    "grad of a tensor that is captured too": lambda x: grad(lambda r: (r * r.detach() * W).sum())(W.detach()),
    "grad_and_value of a tree": lambda x: grad_and_value(lambda a, b: ((a * b["k"]).sum() ** 2, a), (0, 1), True)(
        x, {"k": x}
    ),
    "grad by parameters": by_parameters,
    "grad of grad": lambda x: grad(lambda r: grad(loss)(r).square().sum())(x[0]),
    "grad of vmap": lambda x: grad(lambda w: vmap(lambda r: NET(r * w).sin().sum())(x).sum())(x[0]),
    "grad under no_grad": under_no_grad,
    "jacrev": lambda x: vmap(jacrev(lambda r: LINEAR(r * W).tanh()))(x),
    "jacfwd": lambda x: jacfwd(lambda r: LINEAR(r * W).tanh(), chunk_size=2)(x[0]),
    "hessian": lambda x: vmap(hessian(loss))(x),
    "forward over reverse": lambda x: vmap(lambda r, v: jvp(grad(loss), (r,), (v,))[1])(x, x + 1),
    "forward over reverse of a view": lambda x: jacfwd(jacrev(loss))(x[0]),
    "jvp of jvp": lambda x: jvp(lambda r: jvp(loss, (r,), (x[1],))[1], (x[0],), (x[2],)),
    "vjp": pulled,
    "vjp of each sample": lambda x: vmap(lambda r: vjp(torch.sin, r)[1](r))(x),
    "linearize": pushed,
    "per_sample_grads": lambda x: per_sample_grads(LINEAR, F.mse_loss, chunk_size=3)(x, Y),
    "per_sample_grads, made before": lambda x: per_sample_before(x, Y),
    "torch.autograd.grad": rows,
    "torch.func.grad inside": lambda x: vmap(torch.func.grad(loss))(x),
    "torch.func.hessian inside": lambda x: vmap(torch.func.hessian(loss))(x),
    "torch.func.vjp inside": lambda x: vmap(lambda r: torch.func.vjp(lambda s: s.sin() * W, r)[1](r))(x),
    "torch.func.grad outside": lambda x: torch.func.grad(lambda x: vmap(loss)(x).sum())(x),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_what_is_not_compiled(name):
    want = CASES[name](X)
    got = torch.compile(CASES[name], backend="aot_eager", fullgraph=True)(X)
    torch.testing.assert_close(got, want)
    sums = [sum(t.sin().sum() for t in torch.utils._pytree.tree_leaves(out)) for out in (got, want)]
    assert sums[0].requires_grad == sums[1].requires_grad
    if sums[1].requires_grad:
        grads = [torch.autograd.grad(s, [*PARAMS.values()], allow_unused=True, materialize_grads=True) for s in sums]
        torch.testing.assert_close(*grads)


def test_gradients_reach_arguments():
    def function(x):
        return vmap(grad(loss))(x.sin())

    x = X.clone().requires_grad_()
    got = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)(x)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x) for out in (got, function(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))

    def energy(self, x):
        return self.net(x).sum()

    def forward(self, x):
        return vmap(grad(self.energy))(x)


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.")
def test_export():
    """With the derivative as operators of the graph; what the backward pass has saved would be constants of another."""
    model, shapes = Model(), ({0: torch.export.Dim("batch", min=2)},)
    with torch.no_grad():
        program = torch.export.export(model, (X,), strict=True, dynamic_shapes=shapes)
    x = torch.randn(6, 3)
    torch.testing.assert_close(program.module()(x), model(x))
    with pytest.raises(UnsupportedError, match=r"Instead: export under torch\.no_grad"):
        torch.export.export(model, (X,), strict=True, dynamic_shapes=shapes)


@pytest.mark.parametrize("name", ["vjp", "linearize"])
def test_a_function_that_has_lost_its_graph(name):
    """Never zeros: what a compiled function returns has another graph than what it computed with."""
    compiled = torch.compile(lambda x: getattr(vmap_autograd, name)(torch.sin, x), backend="aot_eager", fullgraph=True)
    out, function = compiled(X)
    torch.testing.assert_close(out, X.sin())
    with pytest.raises(
        UnsupportedError, match=f"{name} has returned inside a compiled function.*Instead: call both in one"
    ):
        function(X)


@pytest.mark.parametrize("outputs", [lambda y, x: y, lambda y, x: y * x])
def test_autograd_grad_of_what_was_computed_outside(outputs):
    """The compiler does not have that graph: it breaks its own, and the gradient is there, wholly."""
    x = X.clone().requires_grad_()
    y = x.sin()

    def function(v):
        return vmap(lambda v: torch.autograd.grad(outputs(y, x), x, v, retain_graph=True, allow_unused=True)[0])(v * 2)

    vectors = torch.randn(2, 4, 3)
    torch.testing.assert_close(torch.compile(function, backend="aot_eager")(vectors), function(vectors))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="computed outside of the compiled function"):
        torch.compile(function, backend="aot_eager", fullgraph=True)(vectors)
