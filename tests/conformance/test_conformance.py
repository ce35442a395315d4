"""A part of the sweep that CI runs: a few samples of every OpInfo entry in every mode, against the Python loop.

What rules return is checked meanwhile: it is well formed, and keeps the layout invariant.
"""

import pytest
import torch

from vmap_core.rulekit.packs import checking

from .cases import MODES
from .known import KNOWN, SHARED, TORCH, Entry, Known, modes, not_seen, unknown
from .sweep import entries, full_name, sweep_one

SAMPLES = 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", entries(""), ids=full_name)
def test_operator(op):
    with checking():
        result = sweep_one("vmap_core", op, MODES, SAMPLES)
    reason = KNOWN[full_name(op)].reason if full_name(op) in KNOWN else "nothing"
    assert not unknown(full_name(op), result), f"known: {reason}"
    if torch.__version__.startswith(TORCH):
        assert not not_seen(full_name(op), result), "no longer so: remove it from known.py"


NEW = {"nn.functional.linear_cross_entropy"}  # operators that PyTorch before 2.13 has not


def test_known_entries_exist():
    names = {full_name(op) for op in entries("")}
    newer = {
        name
        for name in KNOWN
        if name.rpartition(".")[0] in NEW and not hasattr(torch.nn.functional, "linear_cross_entropy")
    }
    assert set(KNOWN) - newer <= names, set(KNOWN) - newer - names


def seen(*found):
    return {mode: {"seen": [[verdict, detail] for m, verdict, detail in found if m == mode]} for mode, _, _ in found}


def test_what_is_known_is_told_from_what_is_not(monkeypatch):
    shape = Known("differs", "", "shape")
    monkeypatch.setitem(
        KNOWN, "op", Entry("why", modes("forward out", SHARED) | modes("sizes", shape), modes("vjp", shape))
    )
    inplace = "InplaceError: vmap: `other` has more elements than `self` [sample 0]"
    good = seen(
        ("forward", "error", inplace), ("out", "error", inplace), ("sizes", "differs", "shape (2,), expected (3,)"),
        ("vjp", "differs", "shape (2,), expected (3,)"),
    )  # fmt: skip
    assert unknown("op", good) == not_seen("op", good) == []
    for mode, verdict, detail in (
        ("nested", "error", inplace),  # another mode
        ("forward", "differs", inplace),  # another verdict
        ("forward", "error", inplace.replace("Inplace", "Value")),  # another class
        ("forward", "error", "InplaceError: vmap: something else"),  # another text
        ("forward", "error", "the process died (-11): has more elements than `self`"),
    ):
        assert len(unknown("op", good | seen((mode, verdict, detail)))) == 1
    assert not_seen("op", {}) == not_seen("op", seen(("vjp", "differs", "shape"))) == [
        "forward: error", "out: error", "sizes: differs",
    ]  # fmt: skip
    assert unknown("another", good) and not not_seen("another", good)
