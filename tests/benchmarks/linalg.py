"""Linear algebra over a batch: many small matrices and few large ones, beside torch.func.vmap, by hand, and a loop.

Run ``python -m tests.benchmarks.linalg [--json FILE]``. Single thread; all four ways of a row are timed in turn.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.timing import in_turn
from vmap_core import vmap

SIZES = {"many small": (1024, 4), "few large": (4, 192)}


def inputs(count: int, n: int) -> dict[str, Tensor]:
    """Return positive definite matrices, also with the batch in the last dim, right-hand sides and factors."""
    torch.manual_seed(0)
    a = torch.randn(count, n, n)
    a = a @ a.mT / n + torch.eye(n)
    (ld, pivots), (qr, tau) = torch.linalg.ldl_factor(a), torch.geqrf(a)
    return {
        "a": a, "b": torch.randn(count, n, 2), "a_last": a.movedim(0, -1).contiguous(), "shared": a[0].clone(),
        "ld": ld, "pivots": pivots, "qr": qr, "tau": tau,
    }  # fmt: skip


# name -> (function of one sample, by hand, names of the inputs, in_dims)
Row = tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...], tuple[int | None, ...]]
L = torch.linalg
ROWS: dict[str, Row] = {
    "solve": (L.solve, L.solve, ("a", "b"), (0, 0)),
    "solve, one matrix for all": (L.solve, L.solve, ("shared", "b"), (None, 0)),
    "cholesky": (L.cholesky, L.cholesky, ("a",), (0,)),
    "svd": (L.svd, L.svd, ("a",), (0,)),
    "eigh": (L.eigh, L.eigh, ("a",), (0,)),
    "matrix_exp": (L.matrix_exp, L.matrix_exp, ("a",), (0,)),
    "cholesky, batch last": (L.cholesky, lambda a: L.cholesky(a.movedim(-1, 0)), ("a_last",), (-1,)),
    "inv": (L.inv, L.inv, ("a",), (0,)),
    "det": (L.det, L.det, ("a",), (0,)),
    "lu_factor": (L.lu_factor, L.lu_factor, ("a",), (0,)),
    "qr": (L.qr, L.qr, ("a",), (0,)),
    "lu": (L.lu, L.lu, ("a",), (0,)),
    "ldl_solve": (L.ldl_solve, L.ldl_solve, ("ld", "pivots", "b"), (0, 0, 0)),
    "ormqr": (torch.ormqr, torch.ormqr, ("qr", "tau", "b"), (0, 0, 0)),
}  # fmt: skip


def loop(function: Callable[..., Any], tensors: list[Tensor], dims: tuple[int | None, ...]) -> Any:
    """Return what the plain Python loop over the batch gives, stacked."""
    size = next(t.shape[d] for t, d in zip(tensors, dims, strict=True) if d is not None)
    columns = [[t] * size if d is None else t.unbind(d) for t, d in zip(tensors, dims, strict=True)]
    rows = [function(*row) for row in zip(*columns, strict=True)]
    return torch.stack(rows) if isinstance(rows[0], Tensor) else [torch.stack(c) for c in zip(*rows, strict=True)]


def measure(pattern: str = "") -> list[dict[str, Any]]:
    """Time every row whose name holds ``pattern``, for each size."""
    results = []
    for size, (count, n) in SIZES.items():
        data = inputs(count, n)
        for name, (sample, by_hand, names, dims) in ROWS.items():
            if pattern not in name:
                continue
            tensors = [data[k] for k in names]
            times = in_turn(
                {
                    "ours": lambda f=vmap(sample, in_dims=dims), t=tensors: f(*t),
                    "torch.func": lambda f=torch.vmap(sample, in_dims=dims), t=tensors: f(*t),
                    "by hand": lambda f=by_hand, t=tensors: f(*t),
                    "loop": lambda f=sample, t=tensors, d=dims: loop(f, t, d),
                },
                rounds=15 if n < 100 else 41,  # one call is a whole burst there
            )
            results.append({"row": name, "size": size, "shape": [count, n, n], **times})
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table: microseconds a call, and ratios."""
    lines = [
        "| operation | matrices | loop | by hand | torch.func | ours | ours/torch.func | loop/ours |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in results:
        count, n, _ = r["shape"]
        lines.append(
            f"| {r['row']} | {count} of {n}x{n} | {r['loop']:.0f} | {r['by hand']:.0f} | {r['torch.func']:.0f} "
            f"| {r['ours']:.0f} | {r['ours'] / r['torch.func']:.2f} | {r['loop'] / r['ours']:.1f} |"
        )
    mean = math.exp(sum(math.log(r["ours"] / r["torch.func"]) for r in results) / len(results))
    lines += ["", f"Geometric mean of ours/torch.func: {mean:.2f} (times in microseconds)."]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peer says where it loops
    results = measure(options.rows)
    print(f"torch {torch.__version__}, 1 thread, float32")
    print(table(results))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"torch": torch.__version__, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
