"""The benchmark's results as Markdown, JSON and a picture."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any

import torch

# Which columns to divide: ours by the peer of most interest first. The first that is there is what the picture shows.
RATIOS = (
    ("ours", "torch.func"), ("ours", "by hand"), ("loop", "ours"), ("program", "by hand"), ("compile", "by hand"),
    ("ours, inductor", "torch.compile by hand"), ("ours, inductor", "jax.jit"), ("moved, ours", "moved, by hand"),
    ("peak, ours", "peak, by hand"), ("graph", "graph by hand"), ("ours", "graph"),
)  # fmt: skip
_NO_TIMES = ("row", "operations")
_ORDER = (
    "loop",
    "by hand",
    "autograd.functional",
    "torch.compile by hand",
    "torch.func",
    "jax.jit",
    "ours, eager",
    "ours",
)


def machine() -> str:
    """Return what the figures were taken on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    if torch.cuda.is_available():
        model = f"{torch.cuda.get_device_name()}, {model}"
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


def ratio(results: list[dict[str, Any]], a: str, b: str) -> float | None:
    """Return the geometric mean of a ratio of two columns over the rows that have both."""
    logs = [math.log(r[a] / r[b]) for r in results if a in r and b in r]
    return math.exp(sum(logs) / len(logs)) if logs else None


def table(results: list[dict[str, Any]]) -> str:
    """Return one suite's results as a Markdown table with the ratios of its columns, and their means below.

    Args:
        results: a dict a row: its name under ``"row"``, a figure for each column that it has.
    """
    columns = [c for c in dict.fromkeys(k for r in results for k in r) if c not in _NO_TIMES]
    columns.sort(key=lambda c: _ORDER.index(c) if c in _ORDER else len(_ORDER))
    ratios = [(a, b) for a, b in RATIOS if ratio(results, a, b) is not None]
    names = [f"{a}/{b}" for a, b in ratios]
    lines = ["| | " + " | ".join(columns + names) + " |", "| --- |" + " ---: |" * (len(columns) + len(names))]
    for r in results:
        cells = [(f"{r[c]:.0f}" if r[c] >= 100 else f"{r[c]:.1f}") if c in r else "—" for c in columns]
        cells += [f"{r[a] / r[b]:.2f}" if a in r and b in r else "—" for a, b in ratios]
        lines.append(f"| {r['row']} | " + " | ".join(cells) + " |")
    means = [f"{name} {ratio(results, a, b):.2f}" for name, (a, b) in zip(names, ratios, strict=True)]
    return "\n".join([*lines, "", "Geometric means: " + ", ".join(means) + "."])


def plot(suites: dict[str, list[dict[str, Any]]], path: str) -> None:
    """Draw, for each suite, the times of the ways beside ours, as multiples of ours.

    Args:
        suites: results by suite.
        path: where to write the picture; its ending chooses the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "vmap"
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    shown = {name: rows for name, rows in suites.items() if any("ours" in r for r in rows)}
    heights = [len(rows) + 4 for rows in shown.values()]
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(8, 0.27 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    marks = {"loop": ("s", "tab:gray"), "by hand": ("|", "black"), "autograd.functional": ("^", "tab:olive"),
             "torch.func": ("o", "tab:red"), "jax.jit": ("D", "tab:purple")}  # fmt: skip
    for axis, (suite, rows) in zip(axes[:, 0], shown.items(), strict=True):
        axis.axvline(1, color="tab:blue", label="ours")
        for way, (marker, color) in marks.items():
            points = [(r[way] / r["ours"], i) for i, r in enumerate(rows) if way in r and "ours" in r]
            if points:
                axis.scatter(*zip(*points, strict=True), marker=marker, color=color, label=way, s=34, zorder=3)
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        steps = (1, 2, 5) if high / low < 100 else (1,)
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=steps))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_yticks(range(len(rows)), [r["row"] for r in rows], fontsize=9)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="y", color="0.93")
        axis.set_title(f"{suite}: time as a multiple of ours", fontsize=10, loc="left", pad=22)
        axis.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, frameon=False, borderpad=0.2,
                    handletextpad=0.3, columnspacing=1.2)  # fmt: skip
    figure.savefig(path, metadata={"Date": None} if path.endswith("svg") else None)
