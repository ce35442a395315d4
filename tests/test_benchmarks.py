"""The benchmark runs, and memory is a promise: it does not depend on the machine."""

import json
import re
import shutil

import pytest
import torch

from tests.benchmarks import __main__ as bench
from tests.benchmarks import memory, work
from tests.benchmarks.timing import Row, nothing


@pytest.mark.parametrize("name", memory.cases())
def test_no_more_memory_than_by_hand(name):
    case = memory.cases()[name]
    ours, by_hand = (memory.used(lambda run=run: run(*case.args)) for run in (case.mapped, case.by_hand))
    assert ours["peak"] <= by_hand["peak"]
    assert ours["moved"] <= 1.05 * by_hand["moved"]


@pytest.mark.filterwarnings("ignore")  # the peer says where it loops
@pytest.mark.parametrize("name", work.rows_beside_peer())
def test_no_more_multiply_adds_than_torch_func(name):
    runs = work.rows_beside_peer()[name]
    assert 0 < work.multiply_adds(runs["ours"]) <= work.multiply_adds(runs["torch.func"])


@pytest.mark.parametrize("name", work.peaks())
def test_derivatives_peak_no_higher_than_by_hand(name):
    case = work.peaks()[name]
    for size in (None, *case.chunks):
        ours, by_hand = case.peaks(size)
        assert ours <= 1.05 * by_hand


def test_multiply_adds_are_counted():
    a, b, v = torch.randn(3, 4), torch.randn(4, 5), torch.randn(4)
    assert work.multiply_adds(lambda: (a @ b, a @ v, v @ v)) == 3 * 4 * 5 + 3 * 4 + 4


def test_an_expanded_operand_is_seen():
    """The measure itself: what a materialised operand costs is more than what a shared one does."""
    x, row = torch.randn(16, 32), torch.randn(32)
    lean = memory.used(lambda: x * row)
    copied = memory.used(lambda: x * row.expand(16, 32).contiguous())
    assert copied["moved"] >= lean["moved"] + 2 * 16 * 32 * 4
    assert copied["peak"] == 2 * lean["peak"]


def test_one_command(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="draws the picture")
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.svg"
    rows = "^(entry|solve|hessian: log|batch norm|cat$)"
    assert bench.main(["--quick", "--rows", rows, "--json", str(figures), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert all(
        f"## {suite}" in printed for suite in ("overhead", "gradients", "layers", "linalg", "captured", "memory")
    )
    taken = json.loads(figures.read_text())
    assert {"by hand", "torch.func", "ours"} <= taken["suites"]["overhead"][0].keys()
    assert "<svg" in picture.read_text()
    assert bench.main(["--from", str(figures)]) == 0
    assert capsys.readouterr().out == printed


def test_the_suite_for_gpus_runs_without_one(capsys):
    assert bench.main(["cuda", "--device", "cpu", "--quick", "--rows", "^(launches|entry|attention)"]) == 0
    printed = capsys.readouterr().out
    assert "| launches: add, 100 ops |" in printed and "| entry: dot |" in printed
    assert "attention, causal, with gradients" in printed


def test_rows_that_fail_are_named_and_the_others_kept(tmp_path, capsys, monkeypatch):
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    taken = [Row("first", lambda: {"ours": nothing}), Row("second", lambda: 1 / 0), Row("third", lambda: stop())]

    def stop():
        assert "| first |" in page.read_text() and json.loads(figures.read_text())  # there before the run ends
        return {"ours": nothing}

    monkeypatch.setitem(bench.SUITES, "overhead", lambda: taken)
    assert bench.main(["overhead", "--quick", "--page", str(page), "--json", str(figures)]) == 1
    printed = capsys.readouterr()
    assert "overhead, second: ZeroDivisionError" in printed.err
    assert "| third |" in printed.out and "| third |" in page.read_text() and "| second |" not in page.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run it on")
def test_the_suite_for_gpus_says_what_it_lacks(capsys):
    bench.main(["cuda"])
    assert "no CUDA device" in capsys.readouterr().out


@pytest.mark.cuda
def test_the_suite_for_gpus(capsys):
    assert bench.main(["cuda", "--quick", "--rows", "^(launches|entry|attention)"]) == 0
    assert "graph by hand" in capsys.readouterr().out


@pytest.mark.development  # takes half an hour with PyTorch's builds for CUDA
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind, which counts, is not installed")
def test_instructions_are_counted(capfd):
    """The switches of PyTorch and the parts that callgrind writes fit together: one way costs more than another."""
    assert bench.main(["overhead", "--rows", "^entry", "--instructions"]) == 0
    printed = capfd.readouterr().out
    by_hand, peer, ours = map(float, re.search(r"\| entry: dot \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)", printed).groups())
    assert "thousands of instructions" in printed
    assert 1 < by_hand < ours < peer
