"""Every example in a docstring and every Python block of the READMEs and docs/ runs, and shows what it says it shows."""

import ast
import contextlib
import doctest
import importlib
import io
import itertools
import linecache
import pkgutil
import re
import shlex
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest
import torch

import vmap_autograd
import vmap_control_flow
import vmap_core.cli
import vmap_core.extend
import vmap_core.testing
import vmap_cuda
import vmap_linalg
import vmap_nn
from vmap_core.patching import registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [vmap_core, vmap_autograd, vmap_control_flow, vmap_cuda, vmap_linalg, vmap_nn]
MODULES = [
    name
    for package in PACKAGES
    for name in (package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")))
]
PAGES = sorted(
    [
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("packages/*/README.md"),
        *ROOT.glob("plugins/*/README.md"),
    ]
)


OPTIONAL = {"vmap_cuda._triton_source": "triton"}  # modules that need an extra


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name], reason=f"{OPTIONAL[name]} is not installed")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
SHAPES = re.compile(r"#\s*(\((?:\d+(?:, ?\d+)*,?)?\)|\{.*\})(?!\s*->)")
TIMES = re.compile(r"\d+(\.\d+)? +(us|ms|s)\b|\b\d+%")


def blocks(page):
    """Yield each Python block, and the block of text right below it: what it prints."""
    found = list(FENCED.finditer(page.read_text()))
    for block, after in itertools.zip_longest(found, found[1:]):
        if block[1] == "python":
            shown = after and after[1] == "text" and not page.read_text()[block.end() : after.start()].strip()
            yield block[2], after[2] if shown else None


def shape_of(value):
    """Return the shape of a tensor, a shape, or a dict of tensors."""
    if isinstance(value, int):  # (8) in a comment
        return (value,)
    if isinstance(value, dict):
        return {key: shape_of(v) for key, v in value.items()}
    return tuple(getattr(value, "shape", value))


def check_shapes(block, tree, values):
    """Compare the value of each statement that ends in a comment such as ``# (8, 3)`` with that shape."""
    comments = {t.start[0]: t.string for t in tokenize.generate_tokens(io.StringIO(block).readline)
                if t.type == tokenize.COMMENT}  # fmt: skip
    for line, value in values.items():
        said = SHAPES.match(comments.get(line, ""))
        if said:
            assert shape_of(value) == shape_of(ast.literal_eval(said[1])), block.splitlines()[line - 1]


def run(block, name, scope):
    """Run a block; return what it prints, and the values of its statements by their last line."""
    linecache.cache[name] = len(block), None, block.splitlines(keepends=True), name  # for inspect, which Triton asks
    tree, values, printed = ast.parse(block, name), {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for statement in tree.body:
            if isinstance(statement, ast.Expr):
                code = compile(ast.Expression(statement.value), name, "eval")
                values[statement.end_lineno] = eval(code, scope)
            else:
                exec(compile(ast.Module([statement], []), name, "exec"), scope)
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                    values[statement.end_lineno] = scope[statement.targets[0].id]
    return printed.getvalue(), tree, values


def words(text):
    """Return a text's words, without those that differ from run to run."""
    return re.sub("-{9,}", "---", TIMES.sub("#", text)).split()


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="the page lists the patches of PyTorch 2.13")
def test_the_page_of_patches_lists_all():
    page = (ROOT / "docs/patches.md").read_text()
    listed = dict(re.findall(r"^\| `(torch\.[\w.]+)` \| (inside|always) \|", page, re.MULTILINE))
    own = [p for p in vmap_core.patches() if p.make.__module__.startswith("vmap_")]
    assert listed == {p.target: "inside" if p.inside else "always" for p in own}


LIBRARIES = "triton|einops|torchdiffeq|linear_operator|tensordict|torch_geometric|torchmetrics|pyro|transformers"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p))], ids=lambda p: str(p.relative_to(ROOT)))
def test_pages(page, monkeypatch):
    monkeypatch.setattr(registry, "_patches", list(registry._patches))  # a page may make one to show how it is done
    for library in re.findall(rf"^(?:import|from) ({LIBRARIES})\b", page.read_text(), re.M):
        pytest.importorskip(library, reason=f"{library} is not installed")
    scope = {"__name__": "__main__"}
    for block, shown in blocks(page):
        printed, tree, values = run(block, f"{page.stem}.py", scope)
        check_shapes(block, tree, values)
        assert shown is None or words(printed) == words(shown), printed


def test_shapes_in_comments_are_checked():
    block = "x = torch.ones(2, 3)  # (2, 3)\nx.sum(0)  # (2,): wrong\n"
    _, tree, values = run(block, "page.py", {"torch": torch})
    with pytest.raises(AssertionError, match="wrong"):
        check_shapes(block, tree, values)


COMMANDS = [
    (page, *command.groups())
    for page in PAGES
    for block in FENCED.finditer(page.read_text())
    if block[1] == "console"
    for command in re.finditer(r"^\$ vmap (.*)\n((?:(?!\$ ).*\n)*)", block[2], re.M)
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "typed", "shown"), COMMANDS, ids=[typed for _, typed, _ in COMMANDS])
def test_commands(page, typed, shown, capsys):
    vmap_core.cli.main(shlex.split(typed))
    assert words(capsys.readouterr().out) == words(shown)


def test_every_command_of_the_project_exists():
    """`./run NAME` in any page, or in the sources, is a script of hatch.toml."""
    scripts = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]["default"]["scripts"]
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / ".ci/run"]:
        for name in re.findall(r"\./run\s+([\w-]+)", page.read_text()):
            assert name in {*scripts, "test", "build"}, (page, name)


@pytest.mark.development
def test_site_builds(tmp_path):
    """Strictly: a link, an anchor or a name in the reference that leads nowhere is an error."""
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "vmap_core.vmap" in (tmp_path / "reference/core/index.html").read_text()


@pytest.mark.parametrize(
    "module",
    [vmap_core, vmap_core.extend, vmap_core.testing, vmap_autograd, vmap_cuda, vmap_nn],
    ids=lambda m: m.__name__,
)
def test_the_reference_names_everything_public(module):
    page = ROOT / f"docs/reference/{module.__name__.rpartition('.')[2].removeprefix('vmap_')}.md"
    named = set(re.findall(r"\w+", page.read_text()))
    assert set(module.__all__) - {"vmap_rules"} <= named


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    assert {str(p.relative_to(ROOT / "docs")) for p in ROOT.glob("docs/**/*.md")} == set(
        re.findall(r"[\w/-]+\.md", text)
    )
