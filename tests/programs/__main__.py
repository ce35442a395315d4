"""Random programs against the loop, as a command: ``python -m tests.programs --seeds 0:5000 --captured``.

Prints how many went how, the classes of what is not equal, and each class that is wrong as a smallest program that can be run.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from .chains import chain, chains
from .generate import program
from .judge import MODES, Verdict, judge
from .program import Program
from .shrink import shrink

KINDS = ("equal", "both raise", "refused", "error", "permits", "differs", "crash")
WRONG = ("differs", "crash")


class Outcome(NamedTuple):
    """How the program of a seed went in a mode."""

    seed: int
    mode: str
    verdict: Verdict


def source(of_chains: bool) -> Callable[[int], Program | None]:
    """Return what gives the program of a number."""
    return chain if of_chains else program


def work(seeds: range, modes: list[str], of_chains: bool) -> None:
    """Run programs one after the other, and print a JSON line before and after each, as a child process."""
    torch.set_num_threads(1)

    def too_long(*_: Any) -> None:
        raise TimeoutError("took longer than a minute")

    signal.signal(signal.SIGALRM, too_long)
    for seed in seeds:
        drawn = source(of_chains)(seed)
        for mode in modes if drawn else ():
            print(json.dumps({"seed": seed, "mode": mode}), flush=True)
            signal.alarm(60)
            verdict = judge(drawn, mode)
            signal.alarm(0)
            print(json.dumps({"verdict": asdict(verdict)}), flush=True)


def run(seeds: range, modes: list[str], jobs: int, of_chains: bool = False) -> list[Outcome]:
    """Return the outcomes of all seeds, from child processes."""
    size = max(len(seeds) // (4 * jobs), 1)
    shares = [seeds[k : k + size] for k in range(0, len(seeds), size)]
    with ThreadPoolExecutor(jobs) as pool:
        return [outcome for part in pool.map(lambda share: _share(share, modes, of_chains), shares) for outcome in part]


def _share(seeds: range, modes: list[str], of_chains: bool) -> list[Outcome]:
    found: list[Outcome] = []
    while seeds:
        command = [sys.executable, "-W", "ignore", "-m", "tests.programs", "--worker", "--modes", *modes]
        command += ["--seeds", f"{seeds.start}:{seeds.stop}", *["--chains"] * of_chains]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert child.stdout is not None
        current: dict[str, Any] = {}
        for line in child.stdout:
            message = json.loads(line)
            if "verdict" in message:
                found.append(Outcome(current["seed"], current["mode"], Verdict(**message["verdict"])))
                current = {}
            else:
                current = message
        if child.wait() == 0:
            break
        seed = current.get("seed", seeds.start)
        found.append(Outcome(seed, current.get("mode", ""), Verdict("crash", f"status {child.returncode}")))
        seeds = range(seed + 1, seeds.stop)
    return found


def table(outcomes: list[Outcome]) -> str:
    """Return a table of modes by kinds of verdict."""
    lines = [f"| mode | programs | {' | '.join(KINDS)} |", f"| --- |{' ---: |' * (len(KINDS) + 1)}"]
    for mode in MODES:
        count = collections.Counter(o.verdict.kind for o in outcomes if o.mode == mode)
        if count:
            lines.append(f"| {mode} | {count.total():,} | {' | '.join(f'{count[k]:,}' for k in KINDS)} |")
    return "\n".join(lines)


def classes(outcomes: list[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """Return what is not equal by verdict, error and operation, the most frequent first."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for o in outcomes:
        if o.verdict.kind not in ("equal", "both raise"):
            found.setdefault((o.verdict.kind, o.verdict.what), []).append(o)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def main(arguments: list[str] | None = None) -> int:
    """Run programs and print what came out; return the exit status: whether any is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.programs", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0:1000", help="FIRST:END, or one")
    parser.add_argument("--modes", nargs="+", default=["values", "checked", "gradients"], choices=MODES)
    parser.add_argument("--captured", action="store_true", help="also captured programs, replayed on other values")
    parser.add_argument(
        "--chains", action="store_true", help=f"chains of two calls instead; there are {len(chains()):,}"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shrink", type=int, default=20, metavar="N", help="so many of the wrong ones")
    parser.add_argument("--show", action="store_true", help="print the programs, in this process, and how each goes")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    first, _, end = options.seeds.partition(":")
    seeds = range(int(first), int(end or int(first) + 1))
    modes = [*options.modes, *["captured"] * (options.captured and "captured" not in options.modes)]
    if options.worker:
        work(seeds, modes, options.chains)
        return 0
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.show:
        for drawn in filter(None, map(source(options.chains), seeds)):
            print(drawn.source(), *(f"# {mode}: {judge(drawn, mode)}" for mode in modes), sep="\n")
        return 0
    outcomes = run(seeds, modes, options.jobs, options.chains)
    print(f"{datetime.date.today()}, torch {torch.__version__}, seeds {seeds.start} to {seeds.stop - 1}\n")
    print(table(outcomes), "\n")
    for (kind, what), some in classes(outcomes).items():
        print(f"{len(some):5} {kind:10} {what}: {' '.join(some[0].verdict.detail.split())[:100]} [seed {some[0].seed}]")
    wrong = {o.seed: o for o in reversed(outcomes) if o.verdict.kind in WRONG}
    for o in list(reversed(wrong.values()))[: options.shrink]:
        smallest = source(options.chains)(o.seed)
        assert smallest is not None
        if judge(smallest, o.mode).kind == "differs":
            smallest = shrink(smallest, lambda p, mode=o.mode: judge(p, mode))  # type: ignore[misc]
        print(
            f"\n# == seed {o.seed}, {o.mode}: {o.verdict.kind} {o.verdict.what} {o.verdict.detail}\n{smallest.source()}"
        )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
