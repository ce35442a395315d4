"""Machine instructions instead of time: what valgrind's callgrind counts does not depend on what else a machine does.

Counting starts and stops around the calls by PyTorch's own switches, those of ``torch.utils.benchmark``.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.timing import Row, Run, works

_FOLDER = "VMAP_BENCH_CALLGRIND"  # where callgrind, which runs this process, writes
_CALLS = 3


def are_counted() -> bool:
    """Tell whether callgrind runs this process."""
    return _FOLDER in os.environ


def run_counted(arguments: Sequence[str]) -> int:
    """Run the benchmark again under callgrind, and return its exit status.

    Raises:
        SystemExit: valgrind is not installed, or this PyTorch knows nothing of it.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None or not torch._C._valgrind_supported_platform():
        raise SystemExit("counting instructions takes valgrind (apt install valgrind) and a PyTorch built for it")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            valgrind, "--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={folder}/out",
            f"--log-file={folder}/log", sys.executable, "-m", "tests.benchmarks", *arguments,
        ]  # fmt: skip
        return subprocess.run(command, env={**os.environ, _FOLDER: folder, "PYTHONHASHSEED": "0"}).returncode


def instructions(run: Run) -> float:
    """Return how many instructions one call takes."""
    folder = Path(os.environ[_FOLDER])
    for _ in range(6):
        run()
    gc.collect()
    gc.disable()
    try:
        torch._C._valgrind_toggle()
        for _ in range(_CALLS):
            run()
        torch._C._valgrind_toggle_and_dump_stats()
    finally:
        gc.enable()
    newest = max(folder.glob("out.*"), key=lambda path: int(path.suffix[1:]))
    counted = re.search(r"^(?:totals|summary): (\d+)", newest.read_text(), re.M)
    assert counted is not None, newest
    return int(counted[1]) / _CALLS


def measure(row: Row) -> dict[str, Any]:
    """Count a row's: its name, and thousands of instructions a call of each way that runs, but for the loop."""
    with torch.set_grad_enabled(row.grad):
        runs = {name: run for name, run in row.make().items() if name not in ("loop", "jax.jit") and works(run)}
        return {"row": row.name, **{name: instructions(run) / 1000 for name, run in runs.items()}}
