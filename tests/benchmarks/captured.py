"""What a captured program costs, beside hand-batched code in one run; with a compiler, beside jax.jit where it is installed.

Run ``python -m tests.benchmarks.captured [--inductor] [--json FILE]``. Single thread, small tensors: what is left to see
is overhead.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call, stack_module_state
from torch.nn.functional import linear

from tests.benchmarks.overhead import ROWS, X, Y, chain
from tests.benchmarks.timing import in_turn
from vmap_autograd import grad
from vmap_core import capture, compile, vmap

Row = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]


def rows() -> dict[str, Row]:
    """Return, by name, a mapped function, the hand-batched one, and their arguments."""
    made: dict[str, Row] = {name: (vmap(sample), batched, (X, Y)) for name, (sample, batched, _) in ROWS.items()}
    a, b = torch.randn(16, 8), torch.randn(12, 8)
    made["nested: cosine of all pairs"] = (
        vmap(vmap(lambda x, y: x @ y / (x.norm() * y.norm()), in_dims=(None, 0)), in_dims=(0, None)),
        lambda a, b: a @ b.T / (a.norm(dim=1)[:, None] * b.norm(dim=1)),
        (a, b),
    )
    made["batch in the last dim: 20 ops"] = (
        vmap(chain(lambda x, y: torch.tanh(x) * y, 10), in_dims=1, out_dims=1),
        chain(lambda x, y: torch.tanh(x) * y, 10),
        (X, Y),
    )
    models = [torch.nn.Linear(8, 8) for _ in range(10)]
    params = {k: v.detach() for k, v in stack_module_state(models)[0].items()}  # type: ignore[arg-type]
    made["ensemble of 10 linear layers"] = (
        vmap(lambda p, x: torch.relu(functional_call(models[0], p, (x,))), in_dims=(0, None)),
        lambda p, x: torch.relu(torch.baddbmm(p["bias"][:, None], x.expand(10, *x.shape), p["weight"].mT)),
        (params, a),
    )
    w, v, t = torch.randn(16, 8), torch.randn(4, 16), torch.randn(16, 4)
    made["per-sample gradients, two layers"] = (
        vmap(grad(_loss, argnums=(0, 1)), in_dims=(None, None, 0, 0)),
        _gradients_by_hand,
        (w, v, a, t),
    )
    spd = torch.eye(6) + torch.randn(8, 6, 6).square() * 0.01
    made["linalg: cholesky, solve"] = (
        vmap(lambda m, x: torch.cholesky_solve(x[:, None], torch.linalg.cholesky(m))[:, 0]),
        lambda m, x: torch.cholesky_solve(x[:, :, None], torch.linalg.cholesky(m))[:, :, 0],
        (spd, torch.randn(8, 6)),
    )
    large = torch.randn(512, 512)
    made["large: sin(x)*x, 2 ops on 512x512"] = (
        vmap(lambda x: torch.sin(x) * x),
        lambda x: torch.sin(x) * x,
        (large,),
    )
    many = {f"p{i}": torch.randn(8, 5) for i in range(100)}
    made["dict of 100 tensors, one op each"] = (
        vmap(lambda d: {k: v * 2 for k, v in d.items()}),
        lambda d: {k: v * 2 for k, v in d.items()},
        (many,),
    )
    return made


def _loss(w: Any, v: Any, x: Any, t: Any) -> Any:
    return (linear(torch.tanh(linear(x, w)), v) - t).square().sum()


def _gradients_by_hand(w: Any, v: Any, x: Any, t: Any) -> Any:
    """The backward pass of `_loss` written out."""
    h = torch.tanh(linear(x, w))
    g = 2 * (linear(h, v) - t)
    back = (g @ v) * (1 - h * h)
    return back[:, :, None] * x[:, None], g[:, :, None] * h[:, None]


def measure(made: dict[str, Row]) -> list[dict[str, Any]]:
    """Time every row, after comparing what it gives."""
    results = []
    for name, (vmapped, batched, args) in made.items():
        program, compiled = capture(vmapped, *args), compile(vmapped)
        torch.testing.assert_close(program(*args), batched(*args), rtol=1e-4, atol=1e-4)
        compiled(*args)
        runs = {
            "by hand": lambda f=batched, args=args: f(*args),
            "vmap": lambda f=vmapped, args=args: f(*args),
            "program": lambda f=program, args=args: f(*args),
            "compile": lambda f=compiled, args=args: f(*args),
        }
        results.append({"row": name, **in_turn(runs)})
    return results


def measure_inductor(made: dict[str, Row], names: list[str]) -> list[dict[str, Any]]:
    """Time the rows whose code a compiler may fuse: ours, torch.compile of the hand-batched code, and jax.jit."""
    results = []
    for name in names:
        vmapped, batched, args = made[name]
        ours, theirs = compile(vmapped, "inductor"), torch.compile(batched)
        ours(*args)
        torch.testing.assert_close(ours(*args), theirs(*args), rtol=1e-4, atol=1e-4)
        runs = {
            "compile, inductor": lambda f=ours, args=args: f(*args),
            "torch.compile by hand": lambda f=theirs, args=args: f(*args),
        }
        if name in _JAX and importlib.util.find_spec("jax"):
            runs["jax.jit(jax.vmap)"] = _jax(name, args)
        results.append({"row": name, **in_turn(runs)})
    return results


# What needs no other names in JAX.
_JAX = {
    "operators: x*y+y, 100 ops": chain(lambda x, y: x * y + y, 50),
    "with a number: x*0.5+1, 100 ops": chain(lambda x, y: x * 0.5 + 1, 50),
    "reductions: x-x.sum(), 100 ops": chain(lambda x, y: x - x.sum(0), 50),
}


def _jax(name: str, args: Any) -> Callable[[], object]:
    import jax

    function = jax.jit(jax.vmap(_JAX[name]))
    given = [jax.numpy.asarray(a.numpy()) for a in args]
    return lambda: jax.block_until_ready(function(*given))


def ratio(results: list[dict[str, Any]], a: str, b: str) -> float:
    """Return the geometric mean of the ratios of two columns."""
    return math.exp(sum(math.log(r[a] / r[b]) for r in results) / len(results))


def table(results: list[dict[str, Any]], columns: list[str]) -> str:
    """Return the results as text: microseconds a call; ratios where a column is one."""
    width = 13 if len(columns) > 3 else 23
    head = f"{'row':<44}" + "".join(f"{c:>{width}}" for c in columns)
    lines = [head, "-" * len(head)]
    for r in results:
        cells = [(f"{r[c]:.2f}" if "/" in c else f"{r[c]:.1f}") if c in r else "" for c in columns]
        lines.append(f"{r['row']:<44}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inductor", action="store_true", help="also compile with inductor; needs a C++ compiler")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = rows()
    results = measure(made)
    for r in results:
        r["program/hand"], r["compile/hand"] = r["program"] / r["by hand"], r["compile"] / r["by hand"]
    print(f"torch {torch.__version__}, 1 thread, microseconds a call")
    print(table(results, ["by hand", "vmap", "program", "compile", "program/hand", "compile/hand"]))
    print(f"geometric mean, program/hand: {ratio(results, 'program', 'by hand'):.2f}", end="   ")
    print(f"compile/hand: {ratio(results, 'compile', 'by hand'):.2f}")
    compiled = []
    if options.inductor:
        names = [n for n in made if n in _JAX or n.startswith(("torch.sin", "linear +", "per-sample", "large"))]
        compiled = measure_inductor(made, names)
        columns = [c for c in compiled[0] if c != "row"]
        print(table(compiled, columns))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"torch": torch.__version__, "rows": results, "inductor": compiled}, file, indent=1)


if __name__ == "__main__":
    main()
