"""What vmap itself costs: entry, and each operation, beside torch.func.vmap and hand-batched code in one run.

Run ``python -m tests.benchmarks.overhead [--json FILE]``. Single thread, tensors of [8, 5]: nothing but overhead.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, softmax

from tests.benchmarks.timing import in_turn
from vmap_core import vmap

X, Y, W = torch.randn(8, 5), torch.randn(8, 5), torch.randn(5, 5)


def chain(step: Callable[..., Any], length: int) -> Callable[..., Any]:
    """Return a function that applies a step ``length`` times."""

    def run(x: Any, y: Any) -> Any:
        for _ in range(length):
            x = step(x, y)
        return x

    return run


# name -> (per-sample function, hand-batched function, operations in it)
ROWS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
    "entry: dot": (torch.dot, lambda x, y: torch.linalg.vecdot(x, y), 1),
    "operators: x*y+y, 100 ops": (chain(lambda x, y: x * y + y, 50),) * 2 + (100,),
    "torch.sin, 100 ops": (chain(lambda x, y: torch.sin(x), 100),) * 2 + (100,),
    "methods: x.mul(y), 100 ops": (chain(lambda x, y: x.mul(y), 100),) * 2 + (100,),
    "with a number: x*0.5+1, 100 ops": (chain(lambda x, y: x * 0.5 + 1, 50),) * 2 + (100,),
    "reductions: x-x.sum(), 100 ops": (
        chain(lambda x, y: x - x.sum(0), 50),
        chain(lambda x, y: x - x.sum(1, keepdim=True), 50),
        100,
    ),
    "views: x.reshape(5,1).squeeze(1), 100 ops": (
        chain(lambda x, y: x.unsqueeze(1).squeeze(1), 50),
        chain(lambda x, y: x.unsqueeze(2).squeeze(2), 50),
        100,
    ),
    "indexing: x[1:], cat, 100 ops": (
        chain(lambda x, y: torch.cat([x[1:], x[:1]]), 33),
        chain(lambda x, y: torch.cat([x[:, 1:], x[:, :1]], 1), 33),
        99,
    ),
    "matmul: W @ x, 50 ops": (chain(lambda x, y: W @ x, 50), chain(lambda x, y: x @ W.T, 50), 50),
    "linear + softmax, 50 ops": (chain(lambda x, y: softmax(linear(x, W), -1), 25),) * 2 + (50,),
}


def measure() -> list[dict[str, Any]]:
    """Time every row."""
    results = []
    for name, (sample, batched, operations) in ROWS.items():
        times = in_turn(
            {
                "ours": lambda f=vmap(sample): f(X, Y),
                "torch.func": lambda f=torch.vmap(sample): f(X, Y),
                "by hand": lambda f=batched: f(X, Y),
            }
        )
        results.append({"row": name, "operations": operations, **times})
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as text: microseconds a call, overhead an operation, and ratios."""
    head = f"{'row':<44}{'by hand':>10}{'torch.func':>12}{'ours':>10}{'ours/peer':>11}{'overhead/op, ours | peer':>28}"
    lines = [head, "-" * len(head)]
    for r in results:
        ours, peer = ((r[k] - r["by hand"]) / r["operations"] for k in ("ours", "torch.func"))
        lines.append(
            f"{r['row']:<44}{r['by hand']:>10.1f}{r['torch.func']:>12.1f}{r['ours']:>10.1f}"
            f"{r['ours'] / r['torch.func']:>11.2f}{ours:>18.2f} |{peer:>8.2f}"
        )
    mean = math.exp(sum(math.log(r["ours"] / r["torch.func"]) for r in results) / len(results))
    lines.append(f"geometric mean of ours/peer: {mean:.2f}    (times in microseconds)")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = measure()
    print(f"torch {torch.__version__}, 1 thread, tensors {tuple(X.shape)}")
    print(table(results))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"torch": torch.__version__, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
