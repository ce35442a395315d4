"""Faults put into the code on purpose, as a command: ``python -m tests.mutation --count 200``.

Each of a sample of faults is tried in a process of its own, which runs the tests that run its line, until one fails. Prints how
many were noticed, and each that was not. Which tests run which line is found out first, and kept: ``--map`` names the file.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from .equal import reason
from .faults import Fault, faults_of
from .seen import Seen

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {
    "rules": ["packages/vmap-core/src/vmap_core/rules"],
    "dispatch": ["packages/vmap-core/src/vmap_core/dispatch"],
    "capture": ["packages/vmap-core/src/vmap_core/programs"],
    "levels": ["packages/vmap-core/src/vmap_core/levels"],
    "packs": ["plugins/vmap-nn/src", "plugins/vmap-linalg/src", "plugins/vmap-autograd/src"],
}
TESTS = ["packages/vmap-core/tests", "plugins/vmap-nn/tests", "plugins/vmap-linalg/tests", "plugins/vmap-autograd/tests",
         "tests/conformance/test_conformance.py", "tests/conformance/test_captured.py", "tests/programs"]  # fmt: skip
OPTIONS = ["-q", "-n0", "-p", "no:cacheprovider", "-W", "ignore"]
KINDS = ("noticed", "not noticed", "equal", "not run")
SECONDS = 120  # for the tests of one fault: a loop without an end is noticed


def files_of(group: str) -> list[Path]:
    """Return the sources of a group."""
    return sorted(f for folder in GROUPS[group] for f in (ROOT / folder).rglob("*.py") if f.name != "__init__.py")


class Faulty(importlib.abc.MetaPathFinder):
    """Finds one module, with a fault in it."""

    def __init__(self, fault: Fault) -> None:
        parts = fault.file.with_suffix("").parts
        self.fault = fault
        self.name = ".".join(parts[len(parts) - parts[::-1].index("src") :])

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Return how to load it."""
        if name != self.name:
            return None
        loader = _Loader(name, str(self.fault.file))
        loader.source = self.fault.applied()
        return importlib.util.spec_from_file_location(name, self.fault.file, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    source = b""

    def get_data(self, path: str) -> bytes:
        return self.source

    def path_stats(self, path: str) -> Any:
        raise OSError("no cached bytecode")


def apart(seconds: float, run: Any) -> int:
    """Return the exit status of a function that a process of its own runs; 99 if it took longer."""
    child = os.fork()
    if not child:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        status = 1
        try:
            status = int(run())
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 99
        time.sleep(0.02)


def tests_of(fault: Fault, seen: dict[str, Any]) -> list[str]:
    """Return the tests that run a fault's line, the quick ones first; of a line outside functions, those of its file.

    Where it was not found out which do, those in the test file of its source.
    """
    if not seen:
        member = next(folder for folder in fault.file.parents if (folder / "tests").is_dir())
        return [str(test) for test in (member / "tests").rglob(f"test_{fault.file.stem.lstrip('_')}.py")]
    lines, seconds = seen["lines"], seen["seconds"]
    name = str(fault.file.relative_to(ROOT))
    found = {}
    for line, tests in lines.items():
        file, _, number = line.rpartition(":")
        if file == name and (int(number) == fault.line or not fault.function):
            found |= dict.fromkeys(tests)
    own = [test for test in found if f"test_{fault.file.stem.lstrip('_')}.py" in test]
    quick = sorted(found, key=lambda test: seconds[test])
    return list(dict.fromkeys([*sorted(own, key=lambda test: seconds[test])[:25], *quick[:25]]))


def judged(fault: Fault, seen: dict[str, Any]) -> str:
    """Return one of `KINDS`."""
    if reason(fault) is not None:
        return "equal"
    tests = tests_of(fault, seen)
    if not tests:
        return "not run"

    def run() -> int:
        sys.meta_path.insert(0, Faulty(fault))
        return pytest.main([*OPTIONS, "-x", *tests])

    return "not noticed" if apart(SECONDS, run) == 0 else "noticed"


def look(out: Path, files: list[Path]) -> None:
    """Find out which tests run which lines."""

    def run() -> int:
        return pytest.main([*OPTIONS, *TESTS], plugins=[Seen(files, out)])

    apart(7200, run)
    found = json.loads(out.read_text())
    found["lines"] = {line.removeprefix(f"{ROOT}/"): tests for line, tests in found["lines"].items()}
    out.write_text(json.dumps(found))


def main() -> int:
    """Try faults and print what came out; return the exit status: whether any is noticed by no test."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("--groups", nargs="+", default=["rules", "dispatch", "capture"], choices=GROUPS)
    parser.add_argument("--files", default="", help="a part of the names of sources")
    parser.add_argument("--count", type=int, default=200, help="faults, drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--map", default=".mutation.json", help="which tests run which line; made where it is missing")
    parser.add_argument("--own", action="store_true", help="run the test file of the source instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # loaded once, and not by each process
    from torch.testing._internal import common_methods_invocations  # noqa: F401

    if not options.own and not Path(options.map).exists():
        look(Path(options.map).resolve(), [f for group in GROUPS for f in files_of(group)])
    seen = {} if options.own else json.loads(Path(options.map).read_text())
    faults = {
        group: [fault for f in files_of(group) if options.files in str(f) for fault in faults_of(f)]
        for group in options.groups
    }
    everything = [(group, fault) for group, some in faults.items() for fault in some]
    drawn = random.Random(options.seed).sample(everything, min(options.count or len(everything), len(everything)))
    counts: dict[str, collections.Counter[str]] = {group: collections.Counter() for group in options.groups}
    for group, fault in drawn:
        kind = judged(fault, seen)
        counts[group][kind] += 1
        print(f"{sum(c.total() for c in counts.values())}: {kind}", file=sys.stderr, flush=True)
        if kind in ("not noticed", "not run"):
            print(f"{kind}: {fault.file.relative_to(ROOT)}:{fault.line}: {fault.kind}: {fault.said()}", flush=True)
    print(
        f"\n{datetime.date.today()}, torch {torch.__version__}, {len(drawn)} of {len(everything):,} faults, seed {options.seed}\n"
    )
    print(f"| in | faults | {' | '.join(KINDS)} |", f"| --- |{' ---: |' * (1 + len(KINDS))}", sep="\n")
    for group, count in counts.items():
        print(f"| {group} | {count.total()} | {' | '.join(str(count[k]) for k in KINDS)} |")
    return int(any(count["not noticed"] + count["not run"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
