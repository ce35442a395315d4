"""The exhaustive sweep, as a command: ``python -m tests.conformance.sweep --impl vmap_core --out table.md``.

Each operator of PyTorch's OpInfo database is mapped in every mode and compared with the Python loop. Two processes
share the work; an operator that takes too long, or takes its process down, is written down as such.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .cases import MODES, cases
from .compare import Outcome, run
from .known import KNOWN, unknown

WORST = ("differs", "error", "fallback", "clean", "skip")


def implementation(name: str) -> Any:
    """Return the vmap to test: ours, the peer, or ours replayed."""
    if name == "torch":
        return torch.vmap
    if name == "captured":
        from .captured import captured_vmap

        return captured_vmap
    import vmap_core

    return vmap_core.vmap


def entries(pattern: str) -> list[Any]:
    """Return the OpInfo entries whose name (with its variant) matches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return [op for op in op_db if re.search(pattern, full_name(op))]


def full_name(op: Any) -> str:
    """Return an entry's name, with its variant after a dot."""
    return op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")


def dtype_of(op: Any) -> torch.dtype | None:
    """Return the dtype to test an entry with: float32 where it is supported."""
    supported = op.supported_dtypes("cpu")
    choices = (torch.float32, torch.int64, torch.bool, torch.complex64)
    return next((d for d in choices if d in supported), None)


class _Draws(TorchDispatchMode):
    """Notes whether an operation that draws from a generator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def is_random(op: Any) -> bool:
    """Tell whether an entry draws random numbers, or returns memory as it found it."""
    if "empty" in op.name:
        return True
    for sample in list(op.sample_inputs("cpu", dtype_of(op)))[:8]:
        mode = _Draws()
        try:
            with mode:
                op.op(sample.input, *sample.args, **sample.kwargs)
        except Exception:
            continue
        if mode.seen:
            return True
    return False


def sweep_one(impl: str, op: Any, modes: tuple[str, ...], limit: int | None, verbose: bool = False) -> dict[str, Any]:
    """Return, for one entry, the worst outcome of each mode with its first detail, what else was seen, and the number of cases."""
    vmap, dtype = implementation(impl), dtype_of(op)
    if dtype is None:
        return {}
    random = is_random(op)
    result: dict[str, Any] = {}
    for case in cases(op, dtype, modes, limit):
        if case.mode in ("gradient", "vjp", "jvp", "vectors") and (random or not dtype.is_floating_point):
            continue
        outcome: Outcome = run(vmap, case, random)
        old = result.setdefault(case.mode, {"verdict": "skip", "detail": "", "seen": [], "cases": 0, "bad": 0})
        old["cases"] += outcome.verdict != "skip"
        if outcome.verdict in ("differs", "error", "fallback"):
            old["bad"] += 1
            if [outcome.verdict, outcome.detail] not in old["seen"]:
                old["seen"].append([outcome.verdict, outcome.detail])
        if WORST.index(outcome.verdict) < WORST.index(old["verdict"]):
            old["verdict"] = outcome.verdict
            old["detail"] = outcome.detail and f"{outcome.detail} [{case.label}; in_dims {case.levels}]"
        if verbose and outcome.verdict in ("differs", "error", "fallback"):
            print(f"  {case.mode}: {outcome.verdict}: {outcome.detail} [{case.label}; in_dims {case.levels}]")
    return result


def work(options: argparse.Namespace) -> None:
    """Run entries one after the other, a JSON line each, as a child process."""
    torch.set_num_threads(1)
    limit = None if options.samples == 0 else options.samples

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"took longer than {options.seconds} s")

    signal.signal(signal.SIGALRM, too_long)
    names = Path(options.worker).read_text().split("\n")
    by_name = {full_name(op): op for op in entries("")}
    for name in names:
        print(json.dumps({"start": name}), flush=True)
        signal.alarm(options.seconds)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = sweep_one(options.impl, by_name[name], tuple(options.modes), limit)
        except TimeoutError as error:
            result = _failed(str(error))
        except Exception as error:
            result = _failed(f"sweep: {error!r}"[:300])
        signal.alarm(0)
        print(json.dumps({"name": name, "result": result}), flush=True)


def _failed(detail: str) -> dict[str, Any]:
    """Return the result of an entry that could not be run to its end: nothing that `known` has."""
    return {"forward": {"verdict": "error", "detail": detail, "seen": [["error", detail]], "cases": 1, "bad": 1}}


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run all entries in child processes; one that dies costs one entry."""
    names = sorted({full_name(op) for op in entries(options.ops)})
    shares = [names[k :: 4 * options.jobs] for k in range(4 * options.jobs)]
    results: dict[str, Any] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for part in pool.map(lambda share: _run_share(options, share), shares):
            results |= part
    return results


def _run_share(options: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    while rest := [name for name in names if name not in results]:
        child, current = _start(options, rest), rest[0]
        for line in child.stdout:
            message = json.loads(line) if line.startswith("{") else {}
            current = message.get("start", current)
            if "name" in message:
                results[message["name"]] = message["result"]
        child.wait()
        if len(results) < len(names):
            results[current] = _failed(f"the process died ({child.returncode})")
    return results


def _start(options: argparse.Namespace, names: list[str]) -> Any:
    with tempfile.NamedTemporaryFile("w", delete=False, suffix=".ops") as file:
        file.write("\n".join(names))
    command = [sys.executable, "-m", "tests.conformance.sweep", "--worker", file.name, "--impl", options.impl,
               "--samples", str(options.samples), "--seconds", str(options.seconds), "--modes", *options.modes]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def summary(results: dict[str, Any]) -> str:
    """Return a table of modes by verdicts: numbers of operators."""
    lines = ["| mode | operators | clean | slow loop | error | differs |", "| --- | --- | --- | --- | --- | --- |"]
    for mode in MODES:
        count = collections.Counter(r[mode]["verdict"] for r in results.values() if mode in r)
        total = sum(count.values()) - count["skip"]
        if total:
            lines.append(
                f"| {mode} | {total} | {count['clean']} | {count['fallback']} | {count['error']} | {count['differs']} |"
            )
    return "\n".join(lines)


def report(results: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the result as a page: the summary, then every operator that is not clean, and why."""
    lines = [
        f"# Conformance of `{options.impl}`",
        "",
        f"{datetime.date.today()}, torch {torch.__version__}, CPU; "
        f"`python -m tests.conformance.sweep --impl {options.impl} --samples {options.samples}`"
        f" ({'every sample' if options.samples == 0 else f'{options.samples} samples'} of each OpInfo entry).",
        "",
        summary(results),
        "",
        not_clean(results, None if options.impl == "torch" else {name: e.reason for name, e in KNOWN.items()}),
    ]
    return "\n".join(lines) + "\n"


def not_clean(results: dict[str, Any], reasons: dict[str, str] | None = None) -> str:
    """Return a table of the operators that are not clean, a line for each reason: one that is given, or the first error."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in sorted(results):
        for mode, r in results[name].items():
            if r["verdict"] in ("differs", "error", "fallback"):
                detail = re.split(r" \[sample|\. |, at /", r["detail"])[0].replace(": vmap: ", ": ")[:120]
                reason = (reasons or {}).get(name, detail)
                some = "" if r["bad"] == r["cases"] else f" ({r['bad']} of {r['cases']})"
                found.setdefault((name, r["verdict"], reason), []).append(mode + some)
    lines = ["| operator | verdict | reason | modes |", "| --- | --- | --- | --- |"]
    for (name, verdict, reason), modes in found.items():
        reason = reason.replace("|", "\\|").replace("\n", " ").replace("`", "'").replace("fallback", "slow loop")
        verdict = verdict.replace("fallback", "slow loop")
        lines.append(f"| `{name}` | {verdict} | {reason} | {', '.join(modes)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the sweep and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--impl", default="vmap_core", choices=["vmap_core", "torch", "captured"])
    parser.add_argument("--ops", default="", help="regular expression on names, for example '^roll$'")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--samples", type=int, default=0, help="samples of each entry (default 0: all)")
    parser.add_argument("--seconds", type=int, default=300, help="time an entry may take")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", help="write the page (.md) and the raw results (.json) here")
    parser.add_argument("--verbose", action="store_true", help="in this process, every bad case")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    if options.verbose:
        torch.set_num_threads(1)
        for op in entries(options.ops):
            print(full_name(op))
            sweep_one(options.impl, op, tuple(options.modes), options.samples or None, verbose=True)
        return
    results = run_all(options)
    print(summary(results))
    others = [f"{name}: {what}" for name, r in sorted(results.items()) for what in unknown(name, r)]
    if options.impl == "vmap_core" and others:
        print("Not in known.py:", *others, sep="\n")
    if options.out:
        Path(options.out).write_text(report(results, options))
        Path(options.out).with_suffix(".json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
