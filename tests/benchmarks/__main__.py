"""The benchmark: ``python -m tests.benchmarks [SUITE ...]``, or ``./run bench``.

Times each row for ours, torch.func, JAX where it is installed, code with the batch written in, and the Python loop, in
turn in one run, single-threaded; prints a table of ratios for each suite. Only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import captured, cuda, gradients, instructions, layers, linalg, memory, overhead, work
from tests.benchmarks.report import machine, plot, table
from tests.benchmarks.timing import Row, measure

SUITES: dict[str, Callable[[], list[Row]]] = {
    "overhead": overhead.rows,
    "gradients": gradients.rows,
    "layers": layers.rows,
    "linalg": linalg.rows,
    "captured": captured.rows,
    "inductor": captured.inductor_rows,
}
DEFAULT = [name for name in SUITES if name != "inductor"] + ["memory", "work"]  # inductor wants minutes and a compiler
COUNTED = {"memory": memory.measure, "work": work.measure}
NAMES = [*SUITES, *COUNTED, "cuda"]


def results_of(suite: str, pattern: str, quick: bool, device: str) -> Iterator[dict[str, Any]]:
    """Iterate over a suite's results: a dict a row, with the exception under ``"error"`` where a row fails."""
    if suite in COUNTED:
        yield from (r for r in COUNTED[suite]() if re.search(pattern, r["row"]))
        return
    for row in cuda.rows(device) if suite == "cuda" else SUITES[suite]():
        if re.search(pattern, row.name):
            try:
                yield instructions.measure(row) if instructions.are_counted() else measure(row, quick)
            except Exception as error:
                yield {"row": row.name, "error": error}


def page_of(taken: dict[str, Any]) -> str:
    """Return the tables of all suites."""
    head = f"{taken['machine']}, 1 thread; {taken['unit']} (memory: bytes; work: as the rows say)"
    return "\n".join([head, *(f"\n## {suite}\n\n{table(results)}" for suite, results in taken["suites"].items())])


def write(taken: dict[str, Any], page: str | None, figures: str | None) -> None:
    """Write the files that were asked for."""
    if page:
        head = f"# Benchmark\n\nWritten by `./run bench --page` on {taken['date']}. [What the rows mean](performance.md).\n\n"
        Path(page).write_text(head + page_of(taken) + "\n")
    if figures:
        Path(figures).write_text(json.dumps(taken, indent=1))


def main(arguments: list[str] | None = None) -> int:
    """Run the suites and print their tables; return the exit status."""
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(NAMES)}; without: all but inductor and cuda")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--quick", action="store_true", help="one call each: to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--plot", metavar="FILE", help="also draw them (.svg or .png); needs matplotlib")
    parser.add_argument("--page", metavar="FILE", help="also write the tables to this Markdown file, with the date")
    parser.add_argument("--from", dest="source", metavar="FILE", help="take the figures from a file that --json wrote")
    parser.add_argument(
        "--device", default="cuda", help="where the suite cuda runs; cpu shows that it works, without graphs"
    )
    parser.add_argument(
        "--instructions", action="store_true", help="count thousands of instructions instead of time; needs valgrind"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.suites) - {*NAMES}
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    if "cuda" in options.suites and options.device == "cuda" and not torch.cuda.is_available():
        print("cuda: PyTorch sees no CUDA device here. --device cpu --quick shows that the suite runs.")
        options.suites.remove("cuda")
        if not options.suites:
            return 0
    if options.instructions and not instructions.are_counted():
        return instructions.run_counted(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peer says where it loops
    taken: dict[str, Any] = {"machine": machine(), "date": datetime.date.today().isoformat(), "suites": {}}
    if options.source:
        with open(options.source) as file:
            taken = json.load(file)
    taken.setdefault("unit", "thousands of instructions" if options.instructions else "microseconds")
    print(page_of({**taken, "suites": {}}))
    failed = False
    for suite in list(taken["suites"]) if options.source else options.suites or DEFAULT:
        results = taken["suites"].get(suite, [])
        for result in () if options.source else results_of(suite, options.rows, options.quick, options.device):
            if "error" in result:
                failed = True
                print(f"{suite}, {result['row']}: {result['error']!r}", file=sys.stderr, flush=True)
                continue
            results.append(result)
            taken["suites"][suite] = results
            write(taken, options.page, options.json)  # so a run that is stopped leaves what it has
        if results:
            print(f"\n## {suite}\n\n{table(results)}", flush=True)
    write(taken, options.page, options.json)
    if options.plot:
        plot(taken["suites"], options.plot)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
