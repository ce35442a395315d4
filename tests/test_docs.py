"""Every example in a docstring and every Python block of the README and docs/ runs."""

import doctest
import importlib
import linecache
import pkgutil
import re
from pathlib import Path

import pytest

import vmap_autograd
import vmap_core
import vmap_cuda
import vmap_linalg
import vmap_nn

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [vmap_core, vmap_autograd, vmap_cuda, vmap_linalg, vmap_nn]
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


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_pages(page):
    if "import triton\n" in page.read_text():
        pytest.importorskip("triton", reason="Triton is not installed")
    scope = {"__name__": page.stem}
    for i, block in enumerate(blocks(page)):
        name = f"<{page.name} {i}>"  # inspect finds the source there, which Triton asks for
        linecache.cache[name] = len(block), None, block.splitlines(keepends=True), name
        exec(compile(block, name, "exec"), scope)
