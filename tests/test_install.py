"""Real wheels in clean environments: each combination of packs, and one from outside this repository.

The environments see the torch that is installed here through a path file, so nothing is downloaded.
"""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = sorted([*ROOT.glob("packages/*"), *ROOT.glob("plugins/*")])
ACME = ROOT / "tests/third_party/acme-vmap"

pytestmark = pytest.mark.wheels


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Wheels of all members and of the third party's pack, by distribution."""
    out = tmp_path_factory.mktemp("wheels")
    for project in [*MEMBERS, ACME]:
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=project, check=True,
                       capture_output=True)  # fmt: skip
    return {w.name.partition("-")[0].replace("_", "-"): w for w in out.glob("*.whl")}


@pytest.fixture
def walkthrough(tmp_path, wheels):
    """The project that docs/packs.md writes, file by file, built and added to the wheels."""
    project = tmp_path / "rows-vmap"
    page = (ROOT / "docs/packs.md").read_text()
    for name, text in re.findall(r'^```\w+ title="(.*?)"\n(.*?)^```$', page, re.S | re.M):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    subprocess.run([sys.executable, "-m", "hatchling", "build"], cwd=project, check=True, capture_output=True)
    (wheels["rows-vmap"],) = (project / "dist").glob("*.whl")
    return project


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """Links to everything installed here but the members: torch and what it needs, and what the tests need."""
    folder = tmp_path_factory.mktemp("everything")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "vmap" not in entry.name and not entry.name.endswith(".pth"):
            (folder / entry.name).symlink_to(entry)
    return folder


def required(name, found):
    """Add the distribution of that name to those found, and whatever it requires here."""
    distribution = importlib.metadata.distribution(name)
    if found.setdefault(canonicalize_name(name), distribution) is distribution:
        for requirement in map(Requirement, distribution.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                required(requirement.name, found)
    return found


@pytest.fixture(scope="session")
def requirements(tmp_path_factory):
    """Links to what the core's metadata asks for, and to nothing else: all that a user has who installs the wheels."""
    folder = tmp_path_factory.mktemp("requirements")
    found = {}
    for line in tomllib.loads((ROOT / "packages/vmap-core/pyproject.toml").read_text())["project"]["dependencies"]:
        required(Requirement(line).name, found)
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():  # several distributions are in nvidia/
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


@pytest.fixture
def environment(tmp_path, wheels, everything):
    """Make an environment with the wheels of some distributions; return a function that runs code in it."""

    def make(*names, libraries=everything):
        venv.create(tmp_path / "env", with_pip=False)
        site = next((tmp_path / "env").glob("lib/python*/site-packages"))
        install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-index",
                   "--target", str(site), *(str(wheels[n]) for n in names)]  # fmt: skip
        subprocess.run(install, check=True, capture_output=True)
        (site / "libraries.pth").write_text(str(libraries))

        def run(code, whole=False, **variables):
            clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VMAP_PACKS")}
            done = subprocess.run([str(run.python), "-c", code], capture_output=True, text=True,
                                  env={**clean, **variables}, cwd=tmp_path)  # fmt: skip
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout if whole else done.stdout.splitlines()[-1])

        run.site, run.python = site, tmp_path / "env/bin/python"
        return run

    return make


def check_upload(folder):
    """Check that a folder has an sdist and a wheel, which an index would take."""
    files = sorted(folder.iterdir(), key=lambda file: file.suffix)
    assert [f.suffix for f in files] == [".gz", ".whl"]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.development
@pytest.mark.parametrize("project", [*MEMBERS, ACME], ids=lambda p: p.name)
def test_distributions_are_fit_to_be_uploaded(project, tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)], cwd=project, check=True,
                   capture_output=True)  # fmt: skip
    check_upload(tmp_path)


@pytest.mark.development
def test_the_walkthroughs_distributions_are_fit_to_be_uploaded(walkthrough):
    check_upload(walkthrough / "dist")


PACKS = "import json, vmap_core; print(json.dumps({p.name: [p.distribution, p.version, repr(p.error)] for p in vmap_core.packs()}))"
DOT = "import json, torch, vmap_core; print(json.dumps(vmap_core.vmap(torch.dot)(torch.ones(3, 2), torch.ones(3, 2)).tolist()))"


HINT = """
import json, torch, warnings, vmap_core
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    out = vmap_core.vmap(torch.nn.Conv1d(2, 3, 2))(torch.randn(4, 2, 5))
assert out.shape == (4, 3, 4)
print(json.dumps([str(w.message) for w in caught if isinstance(w.message, vmap_core.FallbackWarning)]))
"""


def test_core_alone(environment):
    run = environment("vmap-core")
    assert any("pip install vmap-nn" in message for message in run(HINT))
    assert run(PACKS) == {"core": ["vmap-core", "0.1.0", "None"]}
    assert run(DOT) == [2.0, 2.0, 2.0]


def test_core_and_nn(environment):
    run = environment("vmap-core", "vmap-nn")
    assert set(run(PACKS)) == {"core", "nn"}
    assert set(run(PACKS, VMAP_PACKS="")) == {"core"}
    assert run(HINT) == []
    assert run(DOT) == [2.0, 2.0, 2.0]


def test_all_packs_and_the_choice_of_some(environment):
    run = environment(*(m.name for m in MEMBERS))
    assert set(run(PACKS)) == {"core", "autograd", "control-flow", "cuda", "linalg", "nn"}
    assert set(run(PACKS, VMAP_PACKS="nn,linalg")) == {"core", "nn", "linalg"}


MAP_ACME = """
import json, torch, warnings, vmap_core, acme_vmap
warnings.simplefilter("error")
x, norms = torch.randn(5, 3, 4), torch.rand(5)
expected = torch.stack([acme_vmap.clip_rows(a, n) for a, n in zip(x, norms)])
torch.testing.assert_close(vmap_core.vmap(acme_vmap.clip_rows)(x, norms), expected)
one = torch.tensor(0.5)
expected = torch.stack([torch.ops.acme.clip_rows(a, one) for a in x])
torch.testing.assert_close(vmap_core.vmap(lambda a: torch.ops.acme.clip_rows(a, one))(x), expected)
print(json.dumps([p.version for p in vmap_core.packs() if p.name == "acme"]))
"""


def test_a_third_partys_operator(environment):
    assert environment("vmap-core", "acme-vmap")(MAP_ACME) == ["1.2.3"]


def run_tests(run, folder):
    """Run a project's own tests, as its author would, on the installed wheels; return what pytest says."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VMAP_PACKS")}
    done = subprocess.run([str(run.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull,
                           "--rootdir", str(folder), str(folder / "tests")], capture_output=True, text=True, env=clean,
                          cwd=run.site)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_third_partys_tests(environment):
    run = environment("vmap-core", "acme-vmap")
    assert "7 passed" in run_tests(run, ACME)
    assert set(run(PACKS)) == {"core", "acme"}


def test_the_walkthrough(environment, walkthrough):
    """docs/packs.md, followed to the letter."""
    run = environment("vmap-core", "rows-vmap")
    assert "1 passed" in run_tests(run, walkthrough)
    listed = run(
        "import sys, vmap_core.cli; sys.exit(vmap_core.cli.main(['rules', '--pack', 'rows', '--json']))", whole=True
    )
    assert [r["operator"] for r in listed] == ["rows.scale_rows.default"]


def test_a_broken_pack_is_named_and_the_others_work(environment):
    run = environment("vmap-core", "vmap-nn", "acme-vmap")
    (run.site / "acme_vmap/__init__.py").write_text("import a_module_that_is_not_there")
    packs = run(PACKS)
    assert "a_module_that_is_not_there" in packs["acme"][2] and packs["nn"][2] == "None"
    assert run(DOT) == [2.0, 2.0, 2.0]


CONFLICT = """
import json, torch, vmap_core
try:
    vmap_core.vmap(torch.sin)(torch.ones(2))
except vmap_core.PackConflictError as error:
    print(json.dumps(str(error)))
"""


def test_two_packs_with_one_operator_conflict(environment):
    run = environment("vmap-core", "vmap-nn", "acme-vmap")
    (run.site / "acme_vmap/__init__.py").write_text(
        "import torch\nfrom vmap_core.extend import RulePack, hookimpl\npack = RulePack('acme')\n"
        "pack.rule(torch.ops.aten.convolution.default)(lambda info, in_dims, *args: None)\n"
        "@hookimpl\ndef vmap_rules():\n    return [pack]\n"
    )
    message = run(CONFLICT)
    assert "'acme'" in message and "nn.convolution" in message and "aten.convolution" in message
    assert "convolution" not in json.dumps(run(PACKS, VMAP_PACKS="nn"))


def typed(run, command):
    """Type a command of ``vmap`` in an environment; return its exit status, what it prints, and its errors."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VMAP_PACKS")}
    done = subprocess.run([str(run.python), "-m", "vmap_core", *shlex.split(command)], capture_output=True, text=True,
                          env=clean, cwd=run.site)  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_every_command_with_nothing_but_the_requirements(environment, requirements):
    """With PyTorch, pluggy and the wheels alone, a command works, or says what it needs."""
    run = environment(*(m.name for m in MEMBERS), libraries=requirements)
    installed = run(
        "import importlib.metadata, json; print(json.dumps([d.name for d in importlib.metadata.distributions()]))"
    )
    assert not {"pytest", "packaging", "scikit-learn", "rich"} & set(installed)
    for command, status, shown in [
        ("--version", 0, "vmap-core 0.1.0"),
        ("packs", 0, r"linalg +vmap-linalg +0.1.0"),
        ("rules torch.linalg.solve", 0, r"aten.linalg_solve.default +linalg"),
        ("rules no_such_operator", 1, "no operator matches"),
        ("rules --missing conv_tbc.default$", 0, r"aten.conv_tbc.default +-"),
        ("doctor", 0, "a first vmap gives the right result"),
        ("demo --help", 0, "usage: vmap demo"),
    ]:
        found, out, errors = typed(run, command)
        assert found == status and re.search(shown, out), (command, out, errors)
    for command, advice in [("demo", "pip install scikit-learn"), ("coverage ^sin$", "pip install numpy expecttest")]:
        found, out, errors = typed(run, command)
        assert (found, out) == (2, "") and advice in errors, (command, out, errors)


def test_the_core_alone_says_what_its_commands_need(environment, requirements):
    run = environment("vmap-core", libraries=requirements)
    assert "pip install vmap-autograd" in typed(run, "demo")[2]
    status, out, _ = typed(run, "doctor")
    assert status == 0 and "pip install vmap-nn" in out
