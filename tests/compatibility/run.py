"""The suite on another PyTorch and Python: ``./run test --torch 2.14.1 --python 3.12``.

Makes an environment in .venv-torch/ with what hatch.toml lists for the tests, runs them there, and deletes it: most builds of PyTorch
take 3 to 5 GB. A run of the whole suite goes into results.json, and into the table of docs/compatibility.md. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
KNOWN = Path(__file__).with_name("known.toml")
PAGE = ROOT / "docs/compatibility.md"

LEFT_OUT = {"torch", "triton", "ruff", "mypy", "twine", "mkdocs-material", "mkdocstrings"}
"""Of hatch.toml's dependencies: pinned for one PyTorch (its builds for CUDA bring the Triton that fits), or needed only by tests marked
``development``."""


def main(arguments: list[str] | None = None) -> int:
    """Run it as a command; return pytest's exit status."""
    parser = argparse.ArgumentParser(
        prog="./run test", allow_abbrev=False, description="Run the suite on another PyTorch.",
        epilog="Anything else goes to pytest; then results.json and docs/compatibility.md stay as they are.",
    )  # fmt: skip
    parser.add_argument("--torch", required=True, metavar="VERSION", help="such as 2.14.1")
    parser.add_argument("--python", default="3.11", metavar="VERSION", help="default: 3.11")
    parser.add_argument("--interop", action="store_true", help="with the libraries that tests/interop maps")
    parser.add_argument("--keep", action="store_true", help="leave the environment there, for the next run")
    options, rest = parser.parse_known_args(arguments)
    folder = ROOT / f".venv-torch/{options.torch}-py{options.python}"
    try:
        python = environment(folder, options.python, options.torch, options.interop)
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch, "report.xml")
            status = run_tests(python, report, options.interop, rest)
            if not report.exists():  # pytest did not begin
                return status
            row = read_report(report) | versions(python)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(
        f"torch {row['torch']}, Python {row['python']}: {row['passed']} passed, {row['skipped']} skipped, {row['failed']} failed"
    )
    if not rest and not options.interop:
        record(row)
    return status


def environment(folder: Path, version: str, torch: str, interop: bool) -> Path:
    """Make an environment, or bring one up to date that was kept; return its Python."""
    python = folder / "bin/python"
    if not python.exists():
        call(find_python(version), "-m", "venv", folder)
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    call(*install, f"torch=={torch}", *requirements(interop))
    members = sorted(m for pattern in hatch()["workspace"]["members"] for m in ROOT.glob(pattern))
    call(*install, "--no-deps", *(part for member in members for part in ("--editable", member)))
    return python


def hatch() -> dict[str, Any]:
    """Return the environment of hatch.toml that the tests run in."""
    return tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]["hatch-test"]


def requirements(interop: bool) -> list[str]:
    """Return what the tests need beside PyTorch; with ``interop``, other libraries too."""
    settings = hatch()
    wanted = settings["dependencies"] + (settings["extra-dependencies"] if interop else [])
    return [line for line in wanted if re.match(r"[\w-]+", line)[0] not in LEFT_OUT]  # type: ignore[index]


def find_python(version: str) -> str:
    """Return the Python of a minor version: from the path, from uv or from pyenv.

    Raises:
        SystemExit: there is none.
    """
    for candidate in pythons(version):
        said = output(
            candidate, "-c", "import platform; print(platform.python_version())"
        )  # "": a shim that leads nowhere
        if f"{said}.".startswith(f"{version}."):
            return candidate
    raise SystemExit(f"there is no Python {version} here: install it, for example with uv or pyenv")


def pythons(version: str) -> Iterator[str]:
    """Yield where a Python of that version may be."""
    yield sys.executable
    yield from filter(None, [shutil.which(f"python{version}")])
    if shutil.which("uv"):
        yield from filter(None, [output("uv", "python", "find", version)])
    if shutil.which("pyenv"):
        yield from map(str, Path(output("pyenv", "root")).glob(f"versions/{version}*/bin/python"))


def output(*command: str) -> str:
    """Return what a command prints; "" if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode else done.stdout.strip()


def call(*command: str | Path) -> None:
    """Run a command that has to work."""
    subprocess.run([str(part) for part in command], check=True)


def run_tests(python: Path, report: Path, interop: bool, rest: list[str]) -> int:
    """Run the suite without what is about this repository's tools; return pytest's exit status."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "VMAP_PACKS")}
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "-m", "not development", f"--junitxml={report}"]
    command += [] if interop else ["--ignore=tests/interop"]
    return subprocess.run([*command, *rest], cwd=ROOT, env=clean | hatch()["env-vars"]).returncode


def versions(python: Path) -> dict[str, str]:
    """Return the versions of an environment's PyTorch and Python."""
    code = "import json, platform, torch; print(json.dumps([torch.__version__, platform.python_version()]))"
    torch, version = json.loads(
        subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    )
    return {"torch": torch, "python": version, "date": datetime.date.today().isoformat()}


def read_report(report: Path) -> dict[str, Any]:
    """Return how many tests passed, were skipped and failed, and those that failed by the first line of their error."""
    row: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": 0, "failures": {}}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        if bad is not None:
            row["failed"] += 1
            line = (bad.get("message") or "").strip().partition("\n")[0][:120]
            row["failures"].setdefault(line, []).append(f"{case.get('classname')}.{case.get('name')}")
        else:
            row["passed" if case.find("skipped") is None else "skipped"] += 1
    return row


def record(row: dict[str, Any]) -> None:
    """Put a run in the place of the last one on the same PyTorch and Python, and write the page anew."""
    rows = {(r["torch"], r["python"]): r for r in [*json.loads(RESULTS.read_text()), row]}
    ordered = sorted(
        rows.values(), key=lambda r: [tuple(map(int, re.findall(r"\d+", r[key]))) for key in ("torch", "python")]
    )
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), ordered))


def page(text: str, rows: list[dict[str, Any]]) -> str:
    """Return the page with the table of these runs in the place of the one it has."""
    table = ["| torch | Python | passed | skipped | failed | date |", "| --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        failed = "; ".join([str(r["failed"]), *reasons(r)]) if r["failed"] else "0"
        table.append(f"| {r['torch']} | {r['python']} | {r['passed']:,} | {r['skipped']:,} | {failed} | {r['date']} |")
    return re.sub(r"\| torch \|.*\n(\|.*\n)*", lambda _: "\n".join(table) + "\n", text)


def reasons(row: dict[str, Any]) -> list[str]:
    """Return why tests of a run failed, each reason with the number of tests: from known.toml, or the error."""
    known = tomllib.loads(KNOWN.read_text())
    counted: dict[str, int] = {}
    for line, tests in row["failures"].items():
        for test in tests:
            mine = (reason for pattern, reason in known.items() if re.search(pattern, test))
            reason = next(mine, f"not looked into: `{line.replace('|', '/')}`")
            counted[reason] = counted.get(reason, 0) + 1
    return [f"{n}: {reason}" for reason, n in counted.items()]


if __name__ == "__main__":
    sys.exit(main())
