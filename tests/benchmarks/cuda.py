"""What vmap costs on a GPU: rows of the other suites there, beside torch.compile and CUDA graphs.

Small rows are bound by what the host does for each kernel: launches, ours and PyTorch's. A CUDA graph takes them away.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

import vmap_cuda
from tests.benchmarks import gradients, layers, overhead
from tests.benchmarks.timing import Row, Run, nothing

# Which rows of which suite.
CHOSEN: dict[Callable[[], list[Row]], str] = {
    overhead.rows: "^(entry|operators|torch.sin|reductions|linear|nested|ensemble|per-sample|linalg|large|dict)",
    gradients.rows: "^per-sample",
    layers.rows: "^(conv2d|transformer|ensemble of 10 (MLP|CNN)s|attention)",
}


def launches() -> dict[str, Run]:
    """100 kernels, and nothing else: what a launch costs."""
    x, one = torch.zeros(8, 5), torch.ones(8, 5)

    def run() -> None:
        for _ in range(100):
            torch.add(x, one, out=x)

    return {"by hand": run}


def rows(device: str) -> list[Row]:
    """Return the rows; on the CPU, without what needs a GPU."""
    with torch.device(device):
        found = [Row("launches: add, 100 ops", launches, operations=100)]
        for make, pattern in CHOSEN.items():
            found += [row for row in make() if re.search(pattern, row.name)]
    wait = torch.cuda.synchronize if device == "cuda" else nothing

    def there(row: Row) -> dict[str, Run]:
        with torch.device(device):
            runs = row.make()
        runs = {name: runs[name] for name in ("by hand", "torch.func", "ours", "loop") if name in runs}
        return {**runs, **faster(runs)} if device == "cuda" else runs

    return [Row(r.name, lambda r=r: there(r), r.grad, r.rounds, r.operations, wait) for r in found]


def faster(runs: dict[str, Run]) -> dict[str, Run]:
    """Return the ways that leave Python behind."""
    makers: dict[str, tuple[str, Callable[[Run], Run]]] = {
        "torch.compile by hand": ("by hand", torch.compile),
        "graph by hand": ("by hand", graph_by_hand),
        "graph": ("ours", vmap_cuda.graph),
    }
    made = {}
    for name, (of, make) in makers.items():
        if of in runs:
            try:
                made[name] = make(runs[of])
            except RuntimeError as error:
                print(f"{name}: {error}")
    return made


def graph_by_hand(run: Run) -> Run:
    """Capture a run as PyTorch's documentation does, and return its replay: nothing is copied or checked."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
        torch.cuda.set_sync_debug_mode("error")  # what waits for the device must not get into a capture
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.outputs = run()  # type: ignore[attr-defined]  # alive as long as the graph
    return graph.replay
