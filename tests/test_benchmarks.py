"""The benchmark runs, and memory is a promise: it does not depend on the machine."""

import json
import re
import shutil

import pytest
import torch

from tests.benchmarks import __main__ as bench
from tests.benchmarks import memory


@pytest.mark.parametrize("name", memory.cases())
def test_no_more_memory_than_by_hand(name):
    case = memory.cases()[name]
    ours, by_hand = (memory.used(lambda run=run: run(*case.args)) for run in (case.mapped, case.by_hand))
    assert ours["peak"] <= by_hand["peak"]
    assert ours["moved"] <= 1.05 * by_hand["moved"]


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
    bench.main(["--quick", "--rows", rows, "--json", str(figures), "--plot", str(picture)])
    printed = capsys.readouterr().out
    assert all(
        f"## {suite}" in printed for suite in ("overhead", "gradients", "layers", "linalg", "captured", "memory")
    )
    taken = json.loads(figures.read_text())
    assert {"by hand", "torch.func", "ours"} <= taken["suites"]["overhead"][0].keys()
    assert "<svg" in picture.read_text()
    bench.main(["--from", str(figures)])
    assert capsys.readouterr().out == printed


def test_the_suite_for_gpus_runs_without_one(capsys):
    bench.main(["cuda", "--device", "cpu", "--quick", "--rows", "^(launches|entry|attention)"])
    printed = capsys.readouterr().out
    assert "| launches: add, 100 ops |" in printed and "| entry: dot |" in printed
    assert "attention, causal, with gradients" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run it on")
def test_the_suite_for_gpus_says_what_it_lacks(capsys):
    bench.main(["cuda"])
    assert "no CUDA device" in capsys.readouterr().out


@pytest.mark.cuda
def test_the_suite_for_gpus(capsys):
    bench.main(["cuda", "--quick", "--rows", "^(launches|entry|attention)"])
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
