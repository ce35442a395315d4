"""Per-sample gradients, Jacobians and Hessians beside torch.func, torch.autograd.functional and the loop."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.autograd.functional as functional
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import vmap_autograd as ours
from tests.benchmarks.timing import Row, Run
from vmap_core import vmap


def mlp() -> nn.Module:
    """64-128-10."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    """Two convolutions on 16 x 16 images, one linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(0), nn.Linear(400, 10)
    )  # fmt: skip


class Classifier(nn.Module):
    """One encoder layer of width 32 on 16 tokens, mean over tokens, one linear layer."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, tokens: Any) -> Any:
        """(tokens) -> (classes)."""
        return self.head(self.encoder(self.embedding(tokens)).mean(-2))


def per_sample(model: nn.Module, x: Any) -> dict[str, Run]:
    """Per-sample gradients of a model's cross entropy: in_dims (None, 0, 0)."""
    params = {k: v.detach() for k, v in model.named_parameters()}
    y = torch.randint(10, (len(x),))

    def loss(params: Any, x: Any, y: Any) -> Any:
        return cross_entropy(functional_call(model, params, (x,)), y)

    def by_hand() -> list[Any]:
        results = []
        for xi, yi in zip(x, y, strict=True):
            model.zero_grad()
            cross_entropy(model(xi), yi).backward()
            results.append([p.grad for p in model.parameters()])
        return results

    peer = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    mine = vmap(ours.grad(loss), in_dims=(None, 0, 0))
    return {"ours": lambda: mine(params, x, y), "torch.func": lambda: peer(params, x, y), "loop": by_hand}


def logistic_hessian(dim: int) -> dict[str, Run]:
    """The Hessian of a logistic regression's loss on 100 points."""
    x, y, w = torch.randn(100, dim), torch.randint(2, (100,)).float(), torch.randn(dim)

    def loss(w: Any) -> Any:
        return binary_cross_entropy_with_logits(x @ w, y)

    return {
        "ours": lambda: ours.hessian(loss)(w),
        "torch.func": lambda: torch.func.hessian(loss)(w),
        "autograd.functional": lambda: functional.hessian(loss, w, vectorize=True),
        "loop": lambda: functional.hessian(loss, w),
    }


def jacobian(outputs: int, inputs: int, reverse: bool) -> dict[str, Run]:
    """The Jacobian of a small network's outputs."""
    first, second, x = torch.randn(64, inputs) / 8, torch.randn(outputs, 64) / 8, torch.randn(inputs)

    def f(x: Any) -> Any:
        return torch.tanh(second @ torch.tanh(first @ x))

    name = "jacrev" if reverse else "jacfwd"
    strategy = "reverse-mode" if reverse else "forward-mode"
    return {
        "ours": lambda: getattr(ours, name)(f)(x),
        "torch.func": lambda: getattr(torch.func, name)(f)(x),
        "autograd.functional": lambda: functional.jacobian(f, x, vectorize=True, strategy=strategy),
        "loop": lambda: functional.jacobian(f, x),
    }


def batched_vjp(graph: Callable[[Any], Any], x: Any) -> dict[str, Run]:
    """All rows of a Jacobian by a mapped torch.autograd.grad on a graph that is there: README's second use."""
    x = x.requires_grad_()
    y = graph(x)
    rows = torch.eye(y.numel())

    def row(v: Any) -> Any:
        return torch.autograd.grad(y, x, v, retain_graph=True)[0]

    return {
        "ours": lambda: vmap(row)(rows),
        "torch.func": lambda: torch.func.vmap(row)(rows),
        "loop": lambda: [row(v) for v in rows],
    }


def of_network(name: str, network: nn.Module, x: Any) -> dict[str, Run]:
    """The Jacobian of a network's output, or the Hessian of the sum of its squares, by its input."""
    params = {k: v.detach() for k, v in network.named_parameters()}

    def f(x: Any) -> Any:
        out = functional_call(network, params, (x,))
        return out.square().sum() if name == "hessian" else out

    loop = functional.hessian if name == "hessian" else functional.jacobian
    return {
        "ours": lambda: getattr(ours, name)(f)(x),
        "torch.func": lambda: getattr(torch.func, name)(f)(x),
        "autograd.functional": lambda: loop(f, x, vectorize=True),
        "loop": lambda: loop(f, x),
    }


def layers(*sizes: int) -> nn.Module:
    """Linear layers with tanh after each."""
    return nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())))


def mapped_hessian() -> dict[str, Run]:
    """A 6-dim Hessian for each of 64 samples."""
    x, w = torch.randn(64, 6), torch.randn(8, 6)

    def f(x: Any) -> Any:
        return torch.tanh(w @ x).square().sum()

    mine, peer = vmap(ours.hessian(f)), torch.func.vmap(torch.func.hessian(f))
    return {
        "ours": lambda: mine(x),
        "torch.func": lambda: peer(x),
        "loop": lambda: [functional.hessian(f, v) for v in x],
    }


def of_both(make: Callable[[Any, Any], Any]) -> dict[str, Run]:
    """Return a computation by our transforms, and by torch.func's."""
    return {
        "ours": lambda: make(ours, vmap),
        "torch.func": lambda: make(torch.func, torch.func.vmap),
    }


def of_input(network: nn.Module) -> Callable[[Any], Any]:
    params = {k: v.detach() for k, v in network.named_parameters()}
    return lambda x: functional_call(network, params, (x,))


def tangent_kernel(width: int, images: int, classes: int) -> dict[str, Run]:
    """The empirical neural tangent kernel by vjp and jvp, in three nested maps: pairs of inputs, outputs."""
    network = layers(16, width, width, classes)
    params = {k: v.detach() for k, v in network.named_parameters()}
    first, second = torch.randn(images, 16), torch.randn(images, 16)

    def f(params: Any, x: Any) -> Any:
        return functional_call(network, params, (x,))

    def kernel(by: Any, mapping: Any) -> Any:
        def of_pair(x: Any, y: Any) -> Any:
            _, pull = by.vjp(lambda params: f(params, x), params)

            def column(v: Any) -> Any:
                return by.jvp(lambda params: f(params, y), (params,), pull(v))[1]

            return mapping(column)(torch.eye(classes))

        return mapping(lambda x: mapping(lambda y: of_pair(x, y))(second))(first)

    return of_both(kernel)


def residual(way: str) -> dict[str, Run]:
    """The residual ``u_t - u_xx`` of a network at each of 64 points."""
    network = layers(2, 32, 32, 1)
    params = {k: v.detach() for k, v in network.named_parameters()}
    points = torch.rand(64, 2)

    def u(params: Any, x: Any, t: Any) -> Any:
        return functional_call(network, params, (torch.stack([x, t]),)).squeeze(-1)

    def at_point(by: Any, params: Any, x: Any, t: Any) -> Any:
        u_x = by.grad(u, 1)
        if way == "grad":
            u_xx = by.grad(u_x, 1)(params, x, t)
        else:
            u_xx = by.jvp(lambda x: u_x(params, x, t), (x,), (torch.ones(()),))[1]
        return by.grad(u, 2)(params, x, t) - u_xx

    def of_points(by: Any, mapping: Any) -> Any:
        return mapping(lambda params, x, t: at_point(by, params, x, t), in_dims=(None, 0, 0))(params, *points.unbind(1))

    return of_both(of_points)


def of_vectors() -> dict[str, dict[str, Run]]:
    """What is computed for vectors that are mapped, at a point that is not."""
    f, x = of_input(layers(32, 64, 64, 16)), torch.randn(32)
    rows, columns = torch.randn(24, 16), torch.randn(24, 32)

    def loss(x: Any) -> Any:
        return f(x).square().sum()

    return {
        "mapped vjp": of_both(lambda by, vmap: vmap(lambda v: by.vjp(f, x)[1](v))(rows)),
        "mapped vjp_fn": of_both(lambda by, vmap: vmap(by.vjp(f, x)[1])(rows)),
        "mapped jvp": of_both(lambda by, vmap: vmap(lambda t: by.jvp(f, (x,), (t,)))(columns)),
        "mapped linearize": of_both(lambda by, vmap: vmap(lambda t: by.linearize(f, x)[1](t))(columns)),
        "mapped hvp: jvp of grad": of_both(
            lambda by, vmap: vmap(lambda t: by.jvp(by.grad(loss), (x,), (t,))[1])(columns)
        ),
        "mapped hvp: vjp of grad": of_both(
            lambda by, vmap: vmap(lambda t: by.vjp(by.grad(loss), x)[1](t))(columns)
        ),
    }  # fmt: skip


def rows() -> list[Row]:
    """Return the rows."""
    torch.manual_seed(0)
    made: dict[str, Callable[[], dict[str, Run]]] = {
        "per-sample gradients: MLP 64-128-10, batch 128": lambda: per_sample(mlp(), torch.randn(128, 64)),
        "per-sample gradients: CNN, batch 32": lambda: per_sample(cnn(), torch.randn(32, 1, 16, 16)),
        "per-sample gradients: transformer, batch 32": lambda: per_sample(Classifier(), torch.randint(50, (32, 16))),
        "hessian: logistic regression, 20": lambda: logistic_hessian(20),
        "hessian: MLP 32-64-64-32": lambda: of_network("hessian", layers(32, 64, 64, 32), torch.randn(32)),
        "hessian of each of 64 samples, 6": mapped_hessian,
        "mapped autograd.grad: 5 rows": lambda: batched_vjp(lambda x: x.pow(2) * x.sum(), torch.randn(5)),
        "mapped autograd.grad: 64 rows": lambda: batched_vjp(layers(64, 64, 64), torch.randn(64)),
        "jacrev: MLP 32-64-64-32": lambda: of_network("jacrev", layers(32, 64, 64, 32), torch.randn(32)),
        "jacrev: CNN": lambda: of_network("jacrev", cnn(), torch.randn(1, 16, 16)),
        "NTK: MLP 16-128-128-10, 12 x 12 images": lambda: tangent_kernel(128, 12, 10),
        "PINN residual, 64 points: grad of grad": lambda: residual("grad"),
        "PINN residual, 64 points: jvp of grad": lambda: residual("jvp"),
        "mapped vjp, 24 vectors": lambda: of_vectors()["mapped vjp"],
        "mapped jvp, 24 vectors": lambda: of_vectors()["mapped jvp"],
        "mapped hvp, 24 vectors": lambda: of_vectors()["mapped hvp: jvp of grad"],
        "jacrev: 20 outputs, 100 inputs": lambda: jacobian(20, 100, True),
        "jacfwd: 100 outputs, 20 inputs": lambda: jacobian(100, 20, False),
    }
    return [Row(name, make, grad=True) for name, make in made.items()]
