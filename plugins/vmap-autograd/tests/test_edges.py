"""Edges of the graph in the places of tensors, against the loop; and what does not know its batch dim."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import GradientEdge
from torch.autograd.graph import get_gradient_edge as edge
from torch.utils._pytree import tree_map

from vmap_core import UnsupportedError, vmap

torch.manual_seed(0)
D = torch.double
X = torch.randn(4, 3, dtype=D)
W = torch.randn(3, dtype=D, requires_grad=True)
MIDDLE = W.exp()
OUT = MIDDLE.sin() * 2
LAYER = nn.Linear(3, 2, dtype=D)

pytestmark = pytest.mark.filterwarnings("ignore:vmap. torch.autograd.grad at .*from outside")


class Pair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y, x + y

    @staticmethod
    def backward(ctx, g, h):
        x, y = ctx.saved_tensors
        return 3 * g * y + h, g * x + h  # to be told from what autograd would find


def own(x):
    return x.detach().requires_grad_()


def inputs(x):
    leaf = own(x)
    middle = leaf.sin()
    return torch.autograd.grad((middle * middle * W).sum(), [edge(middle), edge(leaf), W])


def outputs(x):
    leaf = own(x)
    return torch.autograd.grad([edge(leaf.sin() * W)], [leaf], x)


def a_scalar_output(x):
    leaf = own(x)
    return torch.autograd.grad(edge((leaf.sin() * W).sum()), leaf)


def outputs_and_inputs(x):
    leaf = own(x)
    return torch.autograd.grad([edge(leaf.sin() * W), leaf.cos()], [edge(leaf)], [x, x * 2])


def of_a_function(x):
    leaf = own(x)
    a, b = Pair.apply(leaf, W.detach())
    return torch.autograd.grad((a * b).sum(), [edge(a), edge(b), edge(leaf)])


def from_a_function(x):
    leaf = own(x)
    a, b = Pair.apply(leaf, W.detach())
    return torch.autograd.grad([edge(a), edge(b)], [edge(leaf)], [x, x * 2])


def of_a_layer(x):
    weight = own(LAYER.weight)
    y = nn.functional.linear(x, weight)
    return torch.autograd.grad(y.sin().sum(), [edge(weight), edge(y)])


def twice(x):
    leaf = own(x)
    (g,) = torch.autograd.grad((leaf**3).sum(), [edge(leaf)], create_graph=True)
    return torch.autograd.grad(g.sum(), edge(leaf))


def made_inside(x):
    c = own(torch.ones(3, dtype=D) * 2)
    z = c * c
    return torch.autograd.grad(z.sum(), [edge(z), edge(c)])


def accumulated(x):
    leaf = own(x)
    torch.autograd.backward([edge((leaf.sin() * W.detach()).sum())], inputs=[edge(leaf)])
    torch.autograd.backward([edge(leaf.cos())], [x])
    return leaf.grad


def found_on_a_walk(x):
    leaf = own(x)
    y = (leaf.sin() * W.detach()).sum()
    todo, found = [y.grad_fn], []
    while todo:
        node = todo.pop()
        if hasattr(node, "variable"):
            found.append(node)
        todo += [n for n, _ in node.next_functions if n is not None]
    assert found == [edge(leaf).node] and len({*found, edge(leaf).node}) == 1
    return torch.autograd.grad(y, [GradientEdge(found[0], 0)])


CASES = {
    "inputs": inputs,
    "outputs": outputs,
    "a scalar output": a_scalar_output,
    "outputs and inputs": outputs_and_inputs,
    "one not used": lambda x: (
        sum(g is None for g in torch.autograd.grad(own(x).sum(), edge(own(x)), allow_unused=True)) * x
    ),
    "from outside": lambda x: torch.autograd.grad((W * x).sin().sum(), [edge(W)]),
    "rows of a Jacobian": lambda x: torch.autograd.grad(edge(OUT), [edge(MIDDLE), edge(W)], x, retain_graph=True),
    "rows, of a tensor": lambda x: torch.autograd.grad(OUT, edge(MIDDLE), x, retain_graph=True),
    "of a Function": of_a_function,
    "from a Function": from_a_function,
    "of a layer": of_a_layer,
    "twice": twice,
    "made inside": made_inside,
    "backward()": accumulated,
    "found on a walk": found_on_a_walk,
}


def loop(f):
    return lambda xs: tree_map(lambda *rows: torch.stack(rows), *map(f, xs))


@pytest.mark.parametrize("f", CASES.values(), ids=CASES)
def test_against_the_loop(f):
    torch.testing.assert_close(vmap(f)(X), loop(f)(X))
    torch.testing.assert_close(vmap(f)(X[:1]), loop(f)(X[:1]))
    torch.testing.assert_close(vmap(f, in_dims=1)(X.T.contiguous()), loop(f)(X))
    both = torch.stack([X, X * 2], 1)
    torch.testing.assert_close(vmap(vmap(f), in_dims=1)(both), loop(loop(f))(both.movedim(1, 0)))


def test_the_mapped_input_from_outside():
    x = X.clone().requires_grad_()
    grads = vmap(lambda r: torch.autograd.grad((r * r * W).sum(), [edge(r)])[0])(x)
    torch.testing.assert_close(grads, 2 * X * W)


def by_its_number(x):
    a, _ = Pair.apply(own(x), W.detach())
    return torch.autograd.grad(a.sum(), [GradientEdge(a.grad_fn, 0)])


def further_down(x):
    y = own(x).sin().sum()
    return torch.autograd.grad(y, [GradientEdge(*y.grad_fn.next_functions[0])])


@pytest.mark.parametrize("f", [by_its_number, further_down])
def test_an_edge_made_of_a_node_is_refused(f):
    for mapped, x in ((vmap(f), X), (vmap(vmap(f)), X[None])):
        with pytest.raises(UnsupportedError, match="does not know its batch dim.*get_gradient_edge"):
            mapped(x)


def test_an_edge_kept_from_a_mapped_function_is_refused():
    kept = []

    def f(x):
        leaf = own(x)
        kept.append(edge(leaf))
        return leaf.detach()

    vmap(f)(X)
    with pytest.raises(UnsupportedError, match="GradientEdge.*no longer active"):
        vmap(lambda x: torch.autograd.grad(own(x).sum(), [kept[0]], allow_unused=True))(X)


def test_hooks_of_nodes_in_python_are_refused_or_of_a_sample():
    def layer(x):
        y = nn.functional.linear(x, own(LAYER.weight))
        y.grad_fn.register_hook(print)
        return y

    for mapped, x in ((vmap(layer), X), (vmap(vmap(layer)), X[None])):
        with pytest.raises(UnsupportedError, match="hook on the graph's node"):
            mapped(x)
