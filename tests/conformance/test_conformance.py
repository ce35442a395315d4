"""A part of the sweep that CI runs: a few samples of every OpInfo entry in every mode, against the Python loop.

What rules return is checked meanwhile: it is well formed, and keeps the layout invariant.
"""

import pytest
import torch

from vmap_core.rulekit.packs import checking

from .cases import MODES
from .known import KNOWN
from .sweep import entries, full_name, sweep_one

SAMPLES = 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", entries(""), ids=full_name)
def test_operator(op):
    allowed, reason = KNOWN.get(full_name(op), (set(), ""))
    with checking():
        result = sweep_one("vmap_core", op, MODES, SAMPLES)
    bad = {
        mode: f"{r['verdict']}: {r['detail']}"
        for mode, r in result.items()
        if not {r["verdict"], f"{mode}:{r['verdict']}"} & {"clean", "skip", *allowed}
    }
    assert not bad, f"{bad} (known: {reason})"


NEW = {"nn.functional.linear_cross_entropy"}  # operators that PyTorch before 2.13 has not


def test_known_entries_exist():
    names = {full_name(op) for op in entries("")}
    newer = {
        name
        for name in KNOWN
        if name.rpartition(".")[0] in NEW and not hasattr(torch.nn.functional, "linear_cross_entropy")
    }
    assert set(KNOWN) - newer <= names, set(KNOWN) - newer - names
