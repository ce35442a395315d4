"""What vmap itself costs: entry, and each operation. Tensors of [8, 5], so there is nothing but overhead to see."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.func import functional_call, stack_module_state
from torch.nn.functional import linear, softmax

import vmap_autograd
import vmap_core
from tests.benchmarks.timing import Row, Run

OURS = SimpleNamespace(vmap=vmap_core.vmap, grad=vmap_autograd.grad)
Mapped = Callable[[Any], Callable[..., Any]]


@dataclass(frozen=True)
class Case:
    """One thing to map.

    Attributes:
        mapped: from a module that has ``vmap`` and ``grad`` (ours, ``torch.func``, ``jax``) to the mapped function.
        by_hand: the same with the batch written in.
        operations: operations in it.
        args: the arguments.
        in_jax: whether it says nothing but what JAX's arrays understand too.
    """

    mapped: Mapped
    by_hand: Callable[..., Any]
    operations: int
    args: tuple[Any, ...]
    in_jax: bool = False


def chain(step: Callable[..., Any], length: int) -> Callable[..., Any]:
    """Return a function that applies a step ``length`` times."""

    def run(x: Any, y: Any) -> Any:
        for _ in range(length):
            x = step(x, y)
        return x

    return run


def _ensemble() -> Case:
    models = [torch.nn.Linear(8, 8) for _ in range(10)]
    params = {k: v.detach() for k, v in stack_module_state(models)[0].items()}  # type: ignore[arg-type]
    return Case(
        lambda api: api.vmap(lambda p, x: torch.relu(functional_call(models[0], p, (x,))), in_dims=(0, None)),
        lambda p, x: torch.relu(torch.baddbmm(p["bias"][:, None], x.expand(10, *x.shape), p["weight"].mT)),
        2,
        (params, torch.randn(16, 8)),
    )


def _loss(w: Any, v: Any, x: Any, t: Any) -> Any:
    return (linear(torch.tanh(linear(x, w)), v) - t).square().sum()


def _gradients_by_hand(w: Any, v: Any, x: Any, t: Any) -> Any:
    """The backward pass of `_loss` written out."""
    h = torch.tanh(linear(x, w))
    g = 2 * (linear(h, v) - t)
    back = (g @ v) * (1 - h * h)
    return back[:, :, None] * x[:, None], g[:, :, None] * h[:, None]


def cases() -> dict[str, Case]:
    """Return the cases by name."""
    torch.manual_seed(0)
    x0, y0, weight = torch.randn(8, 5), torch.randn(8, 5), torch.randn(5, 5)

    def steps(step: Any, length: int, batched: Any = None, operations: int = 0, in_jax: bool = False) -> Case:
        sample, by_hand = chain(step, length), chain(batched or step, length)
        return Case(lambda api: api.vmap(sample), by_hand, operations or length, (x0, y0), in_jax)

    spd = torch.eye(6) + torch.randn(8, 6, 6).square() * 0.01
    return {
        "entry: dot": Case(lambda api: api.vmap(torch.dot), torch.linalg.vecdot, 1, (x0, y0)),
        "operators: x*y+y, 100 ops": steps(lambda x, y: x * y + y, 50, operations=100, in_jax=True),
        "torch.sin, 100 ops": steps(lambda x, y: torch.sin(x), 100),
        "methods: x.mul(y), 100 ops": steps(lambda x, y: x.mul(y), 100),
        "with a number: x*0.5+1, 100 ops": steps(lambda x, y: x * 0.5 + 1, 50, operations=100, in_jax=True),
        "reductions: x-x.sum(), 100 ops": steps(
            lambda x, y: x - x.sum(0), 50, lambda x, y: x - x.sum(1, keepdim=True), 100, in_jax=True
        ),
        "views: x.unsqueeze(1).squeeze(1), 100 ops": steps(
            lambda x, y: x.unsqueeze(1).squeeze(1), 50, lambda x, y: x.unsqueeze(2).squeeze(2), 100
        ),
        "indexing: x[1:], cat, 99 ops": steps(
            lambda x, y: torch.cat([x[1:], x[:1]]), 33, lambda x, y: torch.cat([x[:, 1:], x[:, :1]], 1), 99
        ),
        "matmul: W @ x, 50 ops": steps(lambda x, y: weight @ x, 50, lambda x, y: x @ weight.T),
        "linear + softmax, 50 ops": steps(lambda x, y: softmax(linear(x, weight), -1), 25, operations=50),
        "nested: cosine of all pairs": Case(
            lambda api: api.vmap(
                api.vmap(lambda x, y: x @ y / (x.norm() * y.norm()), in_dims=(None, 0)), in_dims=(0, None)
            ),
            lambda a, b: a @ b.T / (a.norm(dim=1)[:, None] * b.norm(dim=1)),
            5,
            (torch.randn(16, 8), torch.randn(12, 8)),
        ),
        "batch in the last dim: 20 ops": Case(
            lambda api: api.vmap(chain(lambda x, y: torch.tanh(x) * y, 10), in_dims=1, out_dims=1),
            chain(lambda x, y: torch.tanh(x) * y, 10),
            20,
            (x0, y0),
        ),
        "ensemble of 10 linear layers": _ensemble(),
        "per-sample gradients, two layers": Case(
            lambda api: api.vmap(api.grad(_loss, argnums=(0, 1)), in_dims=(None, None, 0, 0)),
            _gradients_by_hand,
            14,
            (torch.randn(16, 8), torch.randn(4, 16), torch.randn(16, 8), torch.randn(16, 4)),
        ),
        "linalg: cholesky, solve": Case(
            lambda api: api.vmap(lambda m, x: torch.cholesky_solve(x[:, None], torch.linalg.cholesky(m))[:, 0]),
            lambda m, x: torch.cholesky_solve(x[:, :, None], torch.linalg.cholesky(m))[:, :, 0],
            4,
            (spd, torch.randn(8, 6)),
        ),
        "large: sin(x)*x, 2 ops on 512x512": Case(
            lambda api: api.vmap(lambda x: torch.sin(x) * x), lambda x: torch.sin(x) * x, 2, (torch.randn(512, 512),)
        ),
        "dict of 100 tensors, one op each": Case(
            lambda api: api.vmap(lambda d: {k: v * 2 for k, v in d.items()}),
            lambda d: {k: v * 2 for k, v in d.items()},
            100,
            ({f"p{i}": torch.randn(8, 5) for i in range(100)},),
        ),
    }


def jax_run(case: Case) -> dict[str, Run]:
    """Return the case under jax.jit, where JAX is installed and knows all that it says; on a CPU."""
    if not case.in_jax or importlib.util.find_spec("jax") is None or any(a.is_cuda for a in case.args):
        return {}
    import jax

    function = jax.jit(case.mapped(jax))
    given = [jax.numpy.asarray(a.numpy()) for a in case.args]
    return {"jax.jit": lambda: jax.block_until_ready(function(*given))}


def rows() -> list[Row]:
    """Return the rows."""

    def ways(case: Case) -> dict[str, Run]:
        ours, peer = case.mapped(OURS), case.mapped(torch.func)
        return {
            "by hand": lambda: case.by_hand(*case.args),
            "torch.func": lambda: peer(*case.args),
            **jax_run(case),
            "ours": lambda: ours(*case.args),
        }

    return [Row(name, lambda case=case: ways(case), operations=case.operations) for name, case in cases().items()]
