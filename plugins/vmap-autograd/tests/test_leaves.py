"""Leaves made inside a mapped function, written to: themselves, their data, views of them taken before or after."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from vmap_core import InplaceError, vmap

torch.manual_seed(0)
D = torch.double
X = torch.randn(2, 4, 3, dtype=D)
W = torch.ones(3, dtype=D)
LAYER = nn.Linear(3, 3, dtype=D)


def ones():
    return torch.ones(3, dtype=D, requires_grad=True)


def views_taken_before(x):
    w = ones()
    views = w.detach(), w[:2], w.data
    with torch.no_grad():
        w.add_(x)
    return [v.detach() * 1 for v in (*views, w)]


def the_data_copied_to(x):
    w = ones()
    w.data.copy_(x)
    w.data[0] = 5.0
    w.data[1:].mul_(2)
    w.data.view(3, 1)[2] = x[0]
    return w.detach() * 1


def the_data_set_to_what_all_share(x):
    w = ones()
    w.data.copy_(torch.full((3,), 3.0))
    w.detach().mul_(2)
    return w * x


def a_view_written_to(x):
    w = ones()
    y = w[:2]
    with torch.no_grad():
        y.mul_(x[0])
    return w.detach() * 1


def a_view_from_before_it_was_a_leaf(x):
    c = torch.zeros(3, dtype=D)
    v = c[:2]
    c.requires_grad_()
    with torch.no_grad():
        v.add_(x[:2])
    return c.detach() + v[0]


def a_step(x):
    w = ones()
    (w * x).sum().backward()
    w.data.add_(w.grad, alpha=-0.1)
    return w.detach() * 1


def an_optimizer(x):
    w = nn.Parameter(W.clone())
    optimizer = torch.optim.Adam([w], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        ((w * x).sum() - 1).square().backward()
        optimizer.step()
    return w.detach()


def of_the_outer_function(x):
    w = ones() if x.ndim == 1 else torch.ones(x.shape, dtype=D, requires_grad=True)
    vmap(lambda e, v: (v.sin() * e).sum())(x, w).sum().backward()
    with torch.no_grad():
        w.sub_(w.grad)
    return w.detach()


def captured_from_the_outer_function(x):
    k = torch.ones(3, dtype=D) * 2

    def inner(s):
        w = k.clone().requires_grad_()
        (w * x * s).sum().backward()
        with torch.no_grad():
            w -= w.grad
        return w.detach()

    return vmap(inner)(x)


CASES = [
    views_taken_before, the_data_copied_to, the_data_set_to_what_all_share, a_view_written_to,
    a_view_from_before_it_was_a_leaf, a_step, an_optimizer, of_the_outer_function, captured_from_the_outer_function,
]  # fmt: skip


def loop(f):
    return lambda xs: tree_map(lambda *rows: torch.stack(rows), *map(f, xs))


@pytest.mark.parametrize("f", CASES)
def test_against_the_loop(f):
    torch.testing.assert_close(vmap(f)(X[0]), loop(f)(X[0]))
    torch.testing.assert_close(vmap(f)(X[0, :1]), loop(f)(X[0, :1]))
    torch.testing.assert_close(vmap(f, in_dims=1)(X[0].T.contiguous()), loop(f)(X[0]))
    torch.testing.assert_close(vmap(vmap(f))(X), loop(loop(f))(X))


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD])
def test_a_leaf_of_memory_from_outside_is_not_written_to(optimizer):
    """In the loop, the next sample would begin with what this one has written."""

    def f(x):
        w = W.detach().requires_grad_()
        (w * x).sum().backward()
        if optimizer is not None:
            optimizer([w], lr=0.1).step()
        else:
            with torch.no_grad():
                w -= w.grad
        return w.detach()

    with pytest.raises(InplaceError, match="comes from outside.*clone"):
        vmap(f)(X[0])
    assert torch.equal(W, torch.ones(3, dtype=D))


OPTIMIZERS = {
    "SGD, its lr": lambda w, n: torch.optim.SGD([w], lr=n, momentum=0.9),
    "SGD, its weight decay": lambda w, n: torch.optim.SGD([w], lr=0.1, weight_decay=n),
    "SGD, its momentum": lambda w, n: torch.optim.SGD([w], lr=0.1, momentum=n),
    "SGD, a group's, foreach": lambda w, n: torch.optim.SGD([{"params": [w], "lr": n}], lr=0.1, foreach=True),
    "Adam": lambda w, n: torch.optim.Adam([w], lr=n),
    "AdamW": lambda w, n: torch.optim.AdamW([w], lr=n, weight_decay=0.1, amsgrad=True),
    "RMSprop": lambda w, n: torch.optim.RMSprop([w], lr=n, momentum=0.9, centered=True),
    "Adagrad": lambda w, n: torch.optim.Adagrad([w], lr=n),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_numbers_of_an_optimizer_are_each_samples(make):
    def f(x):
        layer = copy.deepcopy(LAYER)
        optimizer = make(layer.weight, x[0].abs() / 10)
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).sin().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    torch.testing.assert_close(vmap(f)(X[0]), loop(f)(X[0]))
    torch.testing.assert_close(vmap(vmap(f))(X), loop(loop(f))(X))


MODULES = {
    "a norm": lambda x: nn.LayerNorm(3, dtype=D)(x).detach(),
    "a copy": lambda x: gradients(copy.deepcopy(LAYER), x),
    "a copy of a copy": lambda x: gradients(copy.deepcopy(copy.deepcopy(LAYER)), x),
    "a sequence": lambda x: gradients(nn.Sequential(copy.deepcopy(LAYER), nn.Tanh(), nn.LayerNorm(3, dtype=D)), x),
    "a state that is loaded": lambda x: loaded(x)(x).detach(),
    "statistics": lambda x: statistics(nn.BatchNorm1d(3, dtype=D), x),
    "an average": lambda x: torch.optim.swa_utils.AveragedModel(loaded(x)).module.weight.detach(),
}


def gradients(module, x):
    module(x).square().sum().backward()
    return [p.grad for p in module.parameters()]


def loaded(x):
    module = copy.deepcopy(LAYER)
    module.load_state_dict({name: v * x[0] for name, v in module.state_dict().items()})
    return module


def statistics(norm, x):
    norm(torch.stack([x, x * 2, x + 1]))
    return norm.running_mean


@pytest.mark.parametrize("f", MODULES.values(), ids=MODULES)
def test_modules_made_inside(f):
    torch.testing.assert_close(vmap(f)(X[0]), loop(f)(X[0]))
    torch.testing.assert_close(vmap(f)(X[0, :1]), loop(f)(X[0, :1]))
    torch.testing.assert_close(vmap(vmap(f))(X), loop(loop(f))(X))
