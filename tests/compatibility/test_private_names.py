"""private_names.toml says which of PyTorch's private names are in use, and what the installed PyTorch has of them."""

import doctest

import pytest
import torch

from . import private_names
from .private_names import Listed, Use

FOUND = private_names.scan()
USED = {use.name for use in FOUND}


def test_examples():
    assert doctest.testmod(private_names).failed == 0


def test_the_list_and_the_sources_agree():
    apart, _ = private_names.differences(private_names.listed(), USED)
    assert not apart, "python -m tests.compatibility.private_names --write"


def test_the_list_and_the_installed_pytorch_agree():
    entries = private_names.listed()
    _, wrong = private_names.differences(entries, USED)
    if private_names.minor() not in entries.versions:
        pytest.skip(
            f"the list does not know PyTorch {torch.__version__}; unlike {entries.versions[-1]}: {wrong or 'nothing'}"
        )
    assert not wrong


def test_the_list_is_as_it_is_written():
    assert private_names.LIST.read_text() == private_names.text(private_names.listed())


def test_a_name_that_came_or_went_is_noticed(monkeypatch):
    entries = Listed(
        ["2.10", "2.11"], {"torch._C._nn": ["2.10"], "torch._C._gone": ["2.11"], "torch._VF": ["2.11"]}, set()
    )
    monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
    apart, wrong = private_names.differences(entries, {"torch._C._nn", "torch._C._gone", "torch._C._fft"})
    assert apart == ["torch._C._fft: used, not listed", "torch._VF: listed, not used"]
    assert [line.partition(":")[0] for line in wrong] == ["torch._C._gone", "torch._C._nn"]
    assert "lacks" in wrong[0] and "has" in wrong[1]
    monkeypatch.setattr(torch, "__version__", "2.12.0")  # not in the list: as the newest there
    assert private_names.differences(entries, set())[1] == [w.replace("PyTorch 2.11", "PyTorch 2.12") for w in wrong]
    new = private_names.brought_up_to_date(entries, {"torch._C._nn", "torch._C._fft"})
    assert new == Listed(["2.10", "2.11", "2.12"], {"torch._C._nn": ["2.10", "2.12"], "torch._C._fft": ["2.10", "2.11", "2.12"]}, set())  # fmt: skip


def test_places():
    core = "packages/vmap-core/src/vmap_core/"
    right = [
        Use(f"{core}torch_compat/bindings.py", 1, "torch._C._nn"),
        Use("plugins/vmap-nn/src/vmap_nn/_torch.py", 1, "torch.nn._reduction"),
        Use(f"{core}testing/_samples.py", 1, "torch.testing._internal.common_methods_invocations.op_db"),
    ]
    wrong = [
        Use(f"{core}levels/level.py", 1, "torch._C._nn"),
        Use("plugins/vmap-nn/src/vmap_nn/loss.py", 2, "torch._ops.OpOverload"),
        Use(f"{core}testing/_samples.py", 3, "torch._C._nn"),
        Use(f"{core}levels/level.py", 4, "torch.testing._internal.common_utils"),
    ]
    assert private_names.misplaced(right + wrong) == wrong
    assert private_names.misplaced(wrong, places=(core, "plugins/"), opinfo=("",)) == []


def test_a_check_of_the_places_names_them(capsys, monkeypatch):
    monkeypatch.setattr(private_names, "scan", lambda: [Use("packages/vmap-core/src/vmap_core/a.py", 7, "torch._VF")])
    assert private_names.main(["--check-places"]) == 1
    assert capsys.readouterr().out == "packages/vmap-core/src/vmap_core/a.py:7: torch._VF\n"
    monkeypatch.setattr(private_names, "scan", list)
    assert private_names.main(["--check-places"]) == 0
