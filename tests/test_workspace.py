"""The members of the workspace agree with each other; the folders say what they are."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from vmap_core.torch_compat.versions import TRIED

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = sorted([*ROOT.glob("packages/*"), *ROOT.glob("plugins/*")])
PLUGINS = sorted(ROOT.glob("plugins/*"))


def project(member):
    return tomllib.loads((member / "pyproject.toml").read_text())["project"]


CORE = project(ROOT / "packages/vmap-core")


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_member_is_complete(member):
    about = project(member)
    module = member / "src" / member.name.replace("-", "_")
    assert about["name"] == member.name and about["requires-python"] == ">=3.11"
    for path in (module / "__init__.py", module / "py.typed", member / "README.md", member / "LICENSE"):
        assert path.exists(), path
    assert (member / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda m: m.name)
def test_plugin_fits_the_core(plugin):
    about, stem = project(plugin), plugin.name.removeprefix("vmap-")
    minor = ".".join(CORE["version"].split(".")[:2])
    assert about["dependencies"] == [f"vmap-core~={minor}.0"]
    assert about["entry-points"]["vmap.rules"] == {stem: f"vmap_{stem.replace('-', '_')}"}
    assert CORE["optional-dependencies"][stem] == [f"{plugin.name}~={'.'.join(about['version'].split('.')[:2])}.0"]


def test_the_extra_all_names_every_plugin():
    names = ",".join(p.name.removeprefix("vmap-") for p in PLUGINS)
    (everything,) = CORE["optional-dependencies"]["all"]
    assert sorted(everything.removeprefix("vmap-core[").removesuffix("]").split(",")) == sorted(names.split(","))


@pytest.mark.wheels
@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_wheel_holds_the_sources_and_nothing_else(member, tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=member, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    info = f"{member.name.replace('-', '_')}-{project(member)['version']}.dist-info"
    metadata = {f for f in files if f.startswith(info)}
    sources = (p.relative_to(member / "src") for p in (member / "src").rglob("*") if p.suffix in (".py", ".typed"))
    assert files - metadata == {p.as_posix() for p in sources}
    assert f"{info}/licenses/LICENSE" in metadata
    declared = {"entry-points", "scripts"} & project(member).keys()
    assert (f"{info}/entry_points.txt" in metadata) == bool(declared)
    assert "entry-points" in declared or member not in PLUGINS


def test_both_environments_hold_the_same():
    """hatch-test inherits nothing from default, so what they share is written twice."""
    environments = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]
    for key in (
        "path",
        "python",
        "installer",
        "skip-install",
        "workspace",
        "dependencies",
        "extra-dependencies",
        "env-vars",
    ):
        assert environments["default"][key] == environments["hatch-test"][key], key
    assert "torch==2.13.0" in environments["default"]["dependencies"]


def test_types_are_checked_in_every_member():
    paths = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["mypy_path"]
    assert sorted(paths) == sorted(f"{m.relative_to(ROOT)}/src" for m in MEMBERS)


def test_core_needs_torch_and_pluggy_only():
    assert sorted(d.split(">")[0] for d in CORE["dependencies"]) == ["pluggy", "torch"]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_lower_bounds_are_the_oldest_that_was_tried(member):
    assert project(member)["requires-python"] == f">={TRIED['Python'][0]}"
    assert member.name != "vmap-core" or f"torch>={TRIED['torch'][0]}" in CORE["dependencies"]


def test_core_never_imports_a_plugin():
    stems = [p.name.replace("-", "_") for p in PLUGINS]
    for source in (ROOT / "packages").rglob("src/**/*.py"):
        text = source.read_text()
        assert not any(f"import {s}" in text or f"from {s}" in text for s in stems), source


def test_plugins_use_the_public_api_only():
    for source in (ROOT / "plugins").rglob("src/**/*.py"):
        assert "vmap_core._" not in source.read_text(), source


@pytest.mark.parametrize("folder", ["packages", "plugins"])
def test_no_file_collects_every_concern(folder):
    long = {p: n for p in (ROOT / folder).rglob("src/**/*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_every_rule_file_has_a_test_file_of_its_name(member):
    """``rules/X.py`` of the core, and a plugin's ``X.py`` that makes a pack: ``tests/rules/test_X.py``, in folders alike."""
    module, tests = member / "src" / member.name.replace("-", "_"), member / "tests/rules"
    if member.name == "vmap-core":
        module /= "rules"
        files = {p for p in module.rglob("*.py") if p.name != "__init__.py"}
    else:
        files = {p for p in module.rglob("*.py") if re.search("^pack = RulePack\\(", p.read_text(), re.MULTILINE)}
    assert files
    wanted = {p.relative_to(module).with_name(f"test_{p.name}") for p in files}
    found = {p.relative_to(tests) for p in tests.rglob("test_*.py")}
    assert not wanted - found, "rule files without tests"
    assert not found - wanted, "tests of no rule file"


def test_the_check_on_a_gpu_asks_for_wheels(tmp_path):
    script = tmp_path / "tests/cuda/check.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes((ROOT / "tests/cuda/check.sh").read_bytes())
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 2 and "./run build" in done.stderr and not done.stdout
