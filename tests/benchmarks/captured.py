"""What captured programs cost on the cases of `overhead`: capture, compile, and compile with inductor."""

from __future__ import annotations

import torch

from tests.benchmarks.overhead import OURS, Case, cases, jax_run
from tests.benchmarks.timing import Row, Run
from vmap_core import capture, compile


def rows() -> list[Row]:
    """Return the rows of programs that PyTorch runs operation by operation."""

    def ways(case: Case) -> dict[str, Run]:
        vmapped, args = case.mapped(OURS), case.args
        program, compiled = capture(vmapped, *args), compile(vmapped)
        torch.testing.assert_close(program(*args), case.by_hand(*args), rtol=1e-4, atol=1e-4)
        return {
            "by hand": lambda: case.by_hand(*args),
            "ours, eager": lambda: vmapped(*args),
            "program": lambda: program(*args),
            "compile": lambda: compiled(*args),
        }

    return [Row(name, lambda case=case: ways(case)) for name, case in cases().items()]


# The cases whose code a compiler may fuse.
_FUSED = ("operators", "torch.sin", "with a number", "reductions", "linear +", "per-sample", "large")


def inductor_rows() -> list[Row]:
    """Return the rows of compiled programs; they need a C++ compiler."""

    def ways(case: Case) -> dict[str, Run]:
        ours, theirs = compile(case.mapped(OURS), "inductor"), torch.compile(case.by_hand)
        torch.testing.assert_close(ours(*case.args), theirs(*case.args), rtol=1e-4, atol=1e-4)
        return {
            "torch.compile by hand": lambda: theirs(*case.args),
            **jax_run(case),
            "ours, inductor": lambda: ours(*case.args),
        }

    return [Row(name, lambda case=case: ways(case)) for name, case in cases().items() if name.startswith(_FUSED)]
