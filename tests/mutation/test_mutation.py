"""The command that puts faults into the code: what it changes, that a module is loaded with it, and that it is noticed."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from . import __main__ as mutation
from .equal import EQUAL
from .faults import faults_of

SOURCE = '''"""A docstring with 1 == 2."""

LIMIT = 3


def f(x, y=True) -> 1 + 1:
    """Return 4 + 5."""
    if x > LIMIT and not y:
        raise ValueError("6 < 7")
    x = x.clone(memory_format=None)
    return x[0] + 1 if y else x
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "src" / "faulty"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "one.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "src")
    monkeypatch.setattr(mutation, "ROOT", tmp_path)
    yield folder / "one.py"
    for name in [name for name in sys.modules if name.startswith("faulty")]:
        del sys.modules[name]


def test_what_is_changed(package):
    faults = list(faults_of(package))
    assert [f.kind for f in faults].count("number") == 3  # LIMIT, [0] and + 1: not in docstrings, messages and types
    changes = {f.said() for f in faults}
    assert {
        "x > LIMIT -> x >= LIMIT",
        "not y -> bool(y)",
        "True -> False",
        "0 -> 1",
        "x[0] + 1 -> ((x[0]) - (1))",
    } <= changes
    assert {"x.clone(memory_format=None) -> x", "x.clone(memory_format=None) -> x.clone()"} <= changes
    assert {"x = x.clone(memory_format=None) -> pass", "x[0] + 1 if y else x -> (x if y else x[0] + 1)"} <= changes
    assert "x > LIMIT and not y -> ((x > LIMIT) or (not y))" in changes
    for fault in faults:
        compile(fault.applied(), "source", "exec")
    assert [f.function for f in faults if f.old == "3"] == [False]


def test_a_module_is_loaded_with_a_fault(package, monkeypatch):
    fault = next(f for f in faults_of(package) if f.old == "3")
    monkeypatch.setattr(sys, "meta_path", [mutation.Faulty(fault), *sys.meta_path])
    assert importlib.import_module("faulty.one").LIMIT == 4


@pytest.mark.skipif(sys.platform == "win32", reason="a process of its own by fork")
def test_what_is_noticed(package, monkeypatch):
    test = package.parents[2] / "test_one.py"
    test.write_text("from faulty.one import LIMIT\n\n\ndef test():\n    assert LIMIT == 3\n")
    named = f"{test}::test"
    seen = {"lines": {"src/faulty/one.py:3": [named], "src/faulty/one.py:11": [named]}, "seconds": {named: 0.1}}
    kinds = {f.said(): mutation.judged(f, seen) for f in faults_of(package) if f.old in ("3", "0", "x > LIMIT")}
    assert kinds == {"3 -> 4": "noticed", "0 -> 1": "not noticed", "x > LIMIT -> x >= LIMIT": "not run"}
    monkeypatch.setitem(EQUAL, ("one.py", "0 -> 1"), "why")
    assert mutation.judged(next(f for f in faults_of(package) if f.old == "0"), seen) == "equal"


def test_what_is_listed_as_equal_is_there():
    sources = {}
    for group in mutation.GROUPS:
        for file in mutation.files_of(group):
            sources.setdefault(file.name, set()).update(f.said() for f in faults_of(file))
    for (name, change), why in EQUAL.items():
        assert change in sources[name] and why, (name, change)


def test_which_tests_run_a_line(tmp_path):
    file = Path(mutation.__file__).resolve().parents[2] / "packages/vmap-core/src/vmap_core/rules/fft.py"
    test = tmp_path / "test_fft.py"
    test.write_text(
        "import torch\nfrom vmap_core import vmap\n\n\n"
        "def test_other():\n    pass\n\n\n"
        "def test_fft():\n    for _ in range(2):\n        vmap(torch.fft.fftshift)(torch.ones(2, 3))\n        vmap(torch.fft.rfft)(torch.ones(2, 3))\n"
    )
    out = tmp_path / "seen.json"

    def run():
        return pytest.main([*mutation.OPTIONS, str(test)], plugins=[mutation.Seen([file], out)])

    assert mutation.apart(100, run) == 0
    found = json.loads(out.read_text())
    assert found["lines"] and {name.rpartition("::")[2] for tests in found["lines"].values() for name in tests} == {
        "test_fft"
    }
    assert {name.rpartition("::")[2] for name in found["seconds"]} == {"test_other", "test_fft"}
