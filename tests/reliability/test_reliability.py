"""What ./run reliability tries, in short; and that it would notice."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from tests.reliability import __main__ as reliability
from tests.reliability import leaks, walk
from tests.reliability.rows import Row, fresh, row


def test_a_part_of_the_walk():
    found = fresh(walk.walk, 40, 0)
    assert found["own"] == []
    assert found["calls"] > 500


def notices_crashes() -> dict[str, Any]:
    """Walk over functions that end the process, or do not return."""
    later: list[Any] = []

    def only_ours(*args: Any) -> None:
        if any(type(a).__name__ == "BatchedTensor" for a in args):
            os.kill(os.getpid(), signal.SIGSEGV)

    def any_tensor(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGABRT)

    def first(*args: Any) -> None:
        later.append(args)

    def second(*args: Any) -> None:
        if later:
            os.kill(os.getpid(), signal.SIGBUS)

    steps = walk.Walk()
    steps.callables = {"ours": only_ours, "any": any_tensor, "first": first, "second": second, "fine": torch.sin}
    calls = [
        walk.Call(name, 0, ("batched",) * 3, (1, 1, 1))
        for name in ("fine", "ours", "fine", "any", "first", "fine", "second")
    ]
    found = steps.walk(iter(calls), 60)
    return {"own": found.own, "shared": found.shared, "calls": found.calls}


def test_the_walk_notices_and_goes_on():
    found = fresh(notices_crashes)
    assert found["own"] == ["ours(batched 1-d): SIGSEGV"]
    assert found["shared"] == ["any(batched 1-d): SIGABRT", "first(batched 1-d); second(batched 1-d): SIGBUS"]
    assert found["calls"] == 7


def test_calls_are_drawn_by_the_seed():
    names = list(walk.callables())
    assert len(names) > 2_000
    one, same, other = ([*walk.choose(names[:50], seed, 22)] for seed in (0, 0, 1))
    assert one == same != other
    assert str(walk.Call("f", 5, ("batched", "plain", "made inside"), (0, 1, 2))) == (
        "f([batched 0-d, plain 1-d], made inside 2-d)"
    )


@pytest.mark.parametrize("topic", ["extension", "threads", "packs"])
def test_a_topic(topic):
    rows = list(reliability.TOPICS[topic](True))
    assert rows and all(r.good for r in rows), rows


def leaves_objects() -> dict[str, Any]:
    """Count what a call leaves that keeps something each time."""
    kept: list[Any] = []
    leaks.calls = lambda: {"keeps": lambda i: kept.append([i])}  # type: ignore[assignment]
    return leaks.left_by("keeps", 1_000)


def test_leaks_are_noticed():
    left = fresh(leaves_objects)
    assert left["live objects more"] > 900
    assert not any(fresh(leaks.left_by, "one function", 500).values())


def ends_the_process() -> dict[str, Any]:
    os.abort()


def test_rows():
    assert row("t", 2, {"slips": 0}, "well") == Row("t", 2, "well", True)
    assert row("t", 2, {"slips": 1200, "falls": 1}, "well") == Row("t", 2, "1,200 slips, 1 falls", False)
    (what,) = fresh(ends_the_process)
    assert "process that ended with status -6" in what


def test_one_command(tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Before\n\n<!-- table -->\nold\n<!-- end -->\n\nafter\n")
    monkeypatch.setattr(
        reliability, "TOPICS", {"a": lambda quick: iter([Row("x", 1_000, "fine", True), Row("y", 2, "a|b", quick)])}
    )
    assert reliability.main(["a", "--page", str(page)]) == 1
    assert "| x | 1,000 | fine |\n| y | 2 | **fails**: a/b |\n<!-- end -->\n\nafter" in page.read_text()
    assert "old" not in page.read_text() and torch.__version__ in page.read_text()
    assert reliability.main(["--quick"]) == 0
    with pytest.raises(SystemExit):
        reliability.main(["nothing"])
    capsys.readouterr()
