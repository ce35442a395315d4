"""The suite on another PyTorch: what is installed, which Python, what is written down."""

import json
import subprocess
import sys

import pytest

from vmap_core.torch_compat.versions import TRIED

from . import run

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_right" />
<testcase classname="tests.test_a" name="test_skipped"><skipped message="no CUDA device" /></testcase>
<testcase classname="tests.test_a" name="test_wrong[x]"><failure message="AssertionError: a | b&#10;more">trace</failure></testcase>
<testcase classname="tests.test_b" name="test_wrong"><failure message="AssertionError: a | b">trace</failure></testcase>
<testcase classname="tests.test_b" name="test_broken"><error message="failed on setup">trace</error></testcase>
</testsuite></testsuites>"""
VERSIONS = {"torch": "2.14.1+cu130", "python": "3.12.1", "date": "2026-11-29"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Have results, page and reasons in a folder; return it."""
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "known.toml").write_text('"test_b.test_wrong$" = "a newer database"\n')
    (tmp_path / "page.md").write_text("# Compatibility\n\n| torch | old |\n| --- | --- |\n| 1 | 2 |\n\nAfter it.\n")
    for name, file in (("RESULTS", "results.json"), ("KNOWN", "known.toml"), ("PAGE", "page.md")):
        monkeypatch.setattr(run, name, tmp_path / file)
    return tmp_path


def test_a_run_is_written_down(files):
    (files / "report.xml").write_text(REPORT)
    row = run.read_report(files / "report.xml")
    assert {k: row[k] for k in ("passed", "skipped", "failed")} == {"passed": 1, "skipped": 1, "failed": 3}
    run.record(row | VERSIONS)
    run.record({"passed": 6000, "skipped": 0, "failed": 0, "failures": {}} | VERSIONS | {"torch": "2.9.1"})
    text = (files / "page.md").read_text()
    assert text.startswith("# Compatibility\n\n| torch | Python |") and text.endswith(" |\n\nAfter it.\n")
    older, newer = [line for line in text.splitlines() if line.startswith("| 2")]
    assert older == "| 2.9.1 | 3.12.1 | 6,000 | 0 | 0 | 2026-11-29 |"
    assert "1: a newer database" in newer and "not looked into: `AssertionError: a / b`" in newer and "| 3; " in newer


def test_a_later_run_takes_the_place_of_an_earlier_one(files):
    for passed in (1, 2):
        run.record({"passed": passed, "skipped": 0, "failed": 0, "failures": {}} | VERSIONS)
    assert [row["passed"] for row in json.loads((files / "results.json").read_text())] == [2]


def test_the_page_is_what_was_recorded():
    rows = json.loads(run.RESULTS.read_text())
    assert run.page(run.PAGE.read_text(), rows) == run.PAGE.read_text()
    for row in rows:
        for name, key in (("torch", "torch"), ("Python", "python")):
            assert ".".join(row[key].split(".")[:2]) in TRIED[name]


def test_what_is_installed():
    small, large = run.requirements(interop=False), run.requirements(interop=True)
    assert {"numpy", "pytest", "hypothesis", "hatchling"} < set(small) and set(small) < set(large)
    assert "transformers" in large and "transformers" not in small
    assert not [line for line in large if line.startswith(("torch==", "triton", "ruff", "mkdocs"))]


def test_the_python_that_is_asked_for(tmp_path, monkeypatch):
    mine = "{}.{}".format(*sys.version_info)
    assert run.find_python(mine) == sys.executable
    lost = tmp_path / "python3.99"  # as one of pyenv's shims
    lost.write_text("#!/bin/sh\nexit 127\n")
    lost.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="there is no Python 3.99 here"):
        run.find_python("3.99")
    lost.write_text("#!/bin/sh\necho 3.99.1\n")
    assert run.find_python("3.99") == str(lost)


def test_a_part_of_the_suite_is_not_written_down(files, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "environment", lambda folder, *rest: folder.mkdir(parents=True))
    monkeypatch.setattr(run, "versions", lambda python: VERSIONS)
    monkeypatch.setattr(run, "run_tests", lambda python, report, interop, rest: report.write_text(REPORT) and 1)
    assert run.main(["--torch", "2.14.1", "-n0", "tests/test_demo.py"]) == 1
    assert (files / "results.json").read_text() == "[]" and not list(tmp_path.glob(".venv-torch/*"))
    assert run.main(["--torch", "2.14.1", "--keep"]) == 1
    assert len(json.loads((files / "results.json").read_text())) == 1
    assert [p.name for p in tmp_path.glob(".venv-torch/*")] == ["2.14.1-py3.11"]


def test_it_is_a_command_of_the_project():
    done = subprocess.run([run.ROOT / "run", "test", "--torch", "2.14.1", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--interop" in done.stdout and "pytest" in done.stdout
