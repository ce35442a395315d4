"""The command line, as typed."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
import torch

import vmap_core
from vmap_core.cli import main
from vmap_core.cli.health import bounds_of, examine, within
from vmap_core.cli.render import Table, plain, show
from vmap_core.cli.survey import overloads, who_serves
from vmap_core.extend import RulePack, aten, register, unregister
from vmap_core.rulekit import packs as _packs
from vmap_core.torch_compat.versions import TRIED


def as_json(capsys, *arguments):
    status = main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_packs(capsys):
    status, listed = as_json(capsys, "packs")
    assert status == 0 and listed[0]["pack"] == "core" and {"nn", "linalg", "autograd"} <= {p["pack"] for p in listed}
    main(["packs"])
    assert "vmap-core" in capsys.readouterr().out


def test_rules_of_an_operator(capsys):
    status, found = as_json(capsys, "rules", "cholesky_solve")
    served = {f["operator"]: f for f in found}
    assert status == 0 and served["aten.cholesky_solve.default"]["pack"].startswith("linalg")
    assert served["aten.cholesky_solve.default"]["rule"].startswith("vmap_linalg.")


@pytest.mark.parametrize(
    ("op", "pack", "how"),
    [
        (torch.ops.aten.sin.default, "core", "by tag"),
        (torch.ops.aten.sin_.default, "core", "by tag"),
        (torch.ops.aten.cumsum_.default, "core.reduction", "then written"),
        (torch.ops.aten.cumsum.out, "core", "out="),
        (torch.ops.aten.conv_tbc.out, None, "out="),
        (torch.ops.aten.conv_tbc.default, None, "loop"),
        (torch.ops.aten.arange.default, "core", ""),
        (torch.ops.aten.t_.default, "core", "metadata"),
    ],
)
def test_who_serves(op, pack, how):
    served = who_serves(_packs.current_table(), op)
    assert (served.pack or "") == (pack or "") or (pack and served.pack.startswith(pack))
    assert how in served.how


def test_what_is_said_is_what_happens():
    """Operators that the survey counts as served do not run in the loop, and those in the loop do."""
    from vmap_core import FallbackWarning, vmap

    table = _packs.current_table()
    x = torch.rand(3, 4)
    seen = {True: 0, False: 0}
    for op in overloads():
        arguments = op._schema.arguments
        if len(arguments) != 1 or str(arguments[0].type) != "Tensor" or op._schema.is_mutable or "_" == op.name()[6]:
            continue
        served = who_serves(table, op)
        import warnings

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                vmap(op)(x)
            except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):
                continue
        looped = any(isinstance(w.message, FallbackWarning) and w.message.op is op for w in caught)
        assert looped == (served.pack is None), (op, served)
        seen[looped] += 1
    assert seen[False] > 80


def test_missing(capsys):
    status, found = as_json(capsys, "rules", "--missing", "conv_tbc")
    assert status == 0 and {f["pack"] for f in found} == {"-"}
    assert "aten.conv_tbc.default" in {f["operator"] for f in found}


def test_nothing_found(capsys):
    assert main(["rules", "no_such_operator"]) == 1
    assert capsys.readouterr().out == "no operator matches 'no_such_operator'\n"


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("torch.linalg.solve", {"aten.linalg_solve.default", "aten.linalg_solve.out"}),
        ("F.conv2d", {"aten.conv2d.default", "aten.conv2d.padding"}),
        ("torch.nn.functional.cross_entropy", {"torch.nn.functional.cross_entropy"}),
        ("torch.Tensor.add_", {"aten.add_.Tensor", "aten.add_.Scalar"}),
        ("torch.ops.aten.erfinv", {"aten.erfinv.default", "aten.erfinv.out", "aten.erfinv_.default"}),
        ("^aten.sin[h]?.default$", {"aten.sin.default", "aten.sinh.default"}),
    ],
)
def test_functions_are_found_as_they_are_written(capsys, name, operators):
    status, found = as_json(capsys, "rules", name)
    assert status == 0
    names = {f["operator"] for f in found}
    assert names >= operators if "ops" in name else names == operators


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rules", "("], "'(' is no regular expression"),
        (["coverage", "("], "'(' is no regular expression"),
        (["rules", "--pack", "nn", "--missing"], "not allowed with"),
        (["no_such_command"], "invalid choice"),
        (["coverage", "--samples", "many"], "invalid int value"),
    ],
)
def test_arguments_that_make_no_sense(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_no_such_pack(capsys):
    assert main(["rules", "--pack", "nope"]) == 2
    assert "no pack named 'nope'; installed: core, autograd" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("vmap-core ")


def installed(folder, name, code):
    """Make a distribution with a pack in a folder; return what a process with it on its path has for environment."""
    info = folder / f"{name}_vmap-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-vmap\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vmap.rules]\n{name} = {name}_vmap\n")
    (folder / f"{name}_vmap.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(folder)}


TYPED = """
import contextlib, io, json, sys
from vmap_core.cli import main
results = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command.split())
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def typed(environment, *commands):
    """Type commands in a process of that environment; return status, output and errors of each."""
    done = subprocess.run(
        [sys.executable, "-c", TYPED, json.dumps(commands)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


RIVAL = """
import torch
from vmap_core.extend import RulePack, hookimpl
pack = RulePack("rival")
pack.add(torch.ops.aten.roll.default, lambda info, in_dims, *args: None)
@hookimpl
def vmap_rules():
    return [pack]
"""


def test_packs_in_conflict_are_named_by_each_command(tmp_path):
    environment = installed(tmp_path, "rival", RIVAL)
    *unusable, doctor, packs = typed(environment, "rules roll", "coverage ^roll$", "demo", "doctor", "packs")
    for status, _, errors in unusable:
        assert status == 2 and "'rival' both have a rule for aten.roll.default" in errors and "vmap doctor" in errors
    assert doctor[0] == 1 and "problem  packs 'core." in doctor[1] and "and 'rival' both have a rule" in doctor[1]
    assert packs[0] == 0 and "rival-vmap" in packs[1]
    ((status, _, _),) = typed({**environment, "VMAP_PACKS": "nn"}, "rules roll")
    assert status == 0


def test_a_broken_pack_is_no_hindrance(tmp_path):
    environment = installed(tmp_path, "sick", "import no_such_module")
    packs, rules, doctor = typed(environment, "packs", "rules torch.roll", "doctor")
    assert packs[0] == 0 and "broken: ModuleNotFoundError" in packs[1]
    assert rules[0] == 0 and "vmap_core.rules" in rules[1]
    assert doctor[0] == 1 and "pip install no_such_module, or leave it out" in doctor[1]


def test_a_pack_that_is_asked_for_and_not_there():
    for status, out, errors in typed({**os.environ, "VMAP_PACKS": "nope"}, "packs", "rules", "doctor"):
        assert status != 0 and "no such vmap rule pack: nope" in out + errors


def test_what_is_missing_says_where_to_get_it():
    ((_, out, _),) = typed(
        {**os.environ, "VMAP_PACKS": ""}, "rules aten.(_cdist_backward|embedding_renorm).default --json"
    )
    assert {f["operator"]: f["rule"] for f in json.loads(out)} == {
        "aten._cdist_backward.default": "pip install vmap-autograd",
        "aten.embedding_renorm.default": "pip install vmap-nn",
    }


def test_coverage(capsys):
    pytest.importorskip("expecttest", reason="PyTorch's operator database wants it")
    status, counted = as_json(capsys, "coverage", "^(sin|linalg.solve|nn.functional.conv1d|histogram)$")
    rows = {r["pack"]: r for r in counted}
    assert status == 0 and rows["all"]["operators"] == 4 and rows["all"]["clean"] == 3 and rows["core"]["loop"] == 1
    assert rows["linalg"]["clean"] == rows["nn"]["clean"] == 1
    status, lines = as_json(capsys, "coverage", "-v", "^sin$")
    assert [(r["operator"], r["verdict"]) for r in lines] == [("sin", "clean")]


def test_doctor_finds_nothing_wrong_here(capsys):
    status, findings = as_json(capsys, "doctor")
    assert status == 0, findings
    assert any("a first vmap gives the right result" in f["text"] for f in findings)


def test_doctor_names_a_broken_pack(monkeypatch, capsys):
    _packs.packs()
    monkeypatch.setitem(_packs._registry.broken, "sick", ImportError("no such module"))
    monkeypatch.setitem(_packs._registry.origin, "sick", ("sick-vmap", "1.0"))
    assert main(["doctor"]) == 1
    assert "pack sick (sick-vmap 1.0) does not load" in capsys.readouterr().out


def test_doctor_names_an_old_pack(monkeypatch):
    _packs.packs()
    monkeypatch.setitem(_packs._registry.origin, "nn", ("vmap-nn", "0.0.1"))
    assert any(f.level == "problem" and "version 0.0.1" in f.text for f in examine())


@pytest.mark.parametrize(
    ("version", "bound", "kept"),
    [
        ("2.13.0+cpu", ">=2.10", True),
        ("2.9.1", ">=2.10", False),
        ("2.10", ">=2.10.0", True),
        ("1.5", "<2", True),
        ("2.0.0", "<2", False),
        ("2.0.0rc1", "<2", False),
        ("10.0", "<2", False),
    ],
)
def test_bounds(version, bound, kept):
    assert within(version, bound) == kept


def test_the_bounds_in_our_metadata_are_understood():
    """The doctor compares versions by itself, as the core requires nothing that does."""
    mine = [line for line in importlib.metadata.requires("vmap-core") if ";" not in line]
    names = {name: bounds for name, bounds in map(bounds_of, mine)}
    assert set(names) == {"torch", "pluggy"}
    assert sorted(names["pluggy"]) == ["<2", ">=1.5"] and all(b.startswith(">=") for b in names["torch"])


def test_doctor_names_what_is_required_and_not_there(monkeypatch):
    wanted = ["torch>=99.1", "no-such-thing<2,>=1.5", "pluggy>=1.5", "vmap-nn~=0.1.0; extra == 'nn'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    problems = {f.text: f.advice for f in examine() if f.level == "problem"}
    assert problems == {
        f"torch {importlib.metadata.version('torch')} is installed, vmap-core wants >=99.1": "pip install 'torch>=99.1'",
        "no-such-thing is not installed": "pip install 'no-such-thing<2,>=1.5'",
    }


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("torch", "2.12.1", "torch 2.12.1 is none of those that were tried, 2.11 to "),
        ("torch", "99.0.1+cu999", "torch 99.0.1+cu999 is newer than those that were tried, 2.11 to "),
        ("torch", "2.9.1", "torch 2.9.1 is older than those that were tried, 2.11 to "),
        ("Python", "3.99.0rc1", "Python 3.99.0rc1 is newer than those that were tried, 3.11 to "),
    ],
)
def test_doctor_notes_a_version_that_was_not_tried(monkeypatch, name, version, said):
    """It is no problem: most works, and the exit status says so."""
    monkeypatch.setitem(TRIED, "torch", tuple(v for v in TRIED["torch"] if v != "2.12"))  # a gap
    if name == "torch":
        monkeypatch.setattr(torch, "__version__", version)
    else:
        monkeypatch.setattr("platform.python_version", lambda: version)
    assert [f.level for f in examine() if f.text.startswith(said)] == ["note"]


def test_doctor_says_nothing_of_a_version_that_was_tried(monkeypatch):
    monkeypatch.setattr(torch, "__version__", f"{TRIED['torch'][0]}.7")
    monkeypatch.setattr("platform.python_version", lambda: f"{TRIED['Python'][-1]}.0")
    assert not [f for f in examine() if "tried" in f.text]


def test_doctor_tells_which_operators_this_pytorch_lacks(capsys):
    pack = RulePack("cli_test")
    pack.add(aten.no_such_operator.default, lambda info, in_dims, x: (x, in_dims[0]))
    pack.add(aten.hash_tensor.default, lambda info, in_dims, x: (x, in_dims[0]))
    register(pack)
    try:
        (info,) = [p for p in vmap_core.packs() if p.name == "cli_test"]
        assert (info.rules, info.missing) == (1, ("aten.no_such_operator.default",))
        status, findings = as_json(capsys, "doctor")
    finally:
        unregister("cli_test")
    said = f"pack cli_test has rules for what torch {torch.__version__} lacks: aten.no_such_operator.default"
    assert status == 0 and [f["level"] for f in findings if f["text"] == said] == ["note"]


def test_a_pack_of_ones_own_is_listed(capsys):
    pack = RulePack("cli_test")
    pack.add(torch.ops.aten.hash_tensor.default, lambda info, in_dims, x: (x, in_dims[0]))
    register(pack)
    try:
        _, found = as_json(capsys, "rules", "--pack", "cli_test")
        assert [f["operator"] for f in found] == ["aten.hash_tensor.default"]
    finally:
        unregister("cli_test")


def test_tables(capsys, monkeypatch):
    table = Table("name", "count")
    table.add("a", 1)
    table.add("long", 100)
    assert plain(table) == "name  count\n-----------\na         1\nlong    100"
    pytest.importorskip("rich", reason="the other form")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show(table)
    assert "long" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["-m", "vmap_core", "packs"], ["-m", "vmap_core", "demo", "--help"]])
def test_as_a_program(command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_a_command_is_wanted(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2 and "usage: vmap" in capsys.readouterr().err
