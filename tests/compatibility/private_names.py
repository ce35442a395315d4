"""Which of PyTorch's private names the sources use, where, and which versions of PyTorch have them.

``python -m tests.compatibility.private_names`` compares private_names.toml with the sources and the installed PyTorch; ``--write``
brings it up to date; ``--check-places`` names each private name outside the modules that are there for them.

A name is private if a part of it begins with an underscore: ``torch._C._nn``, ``torch._ops.OpOverload``. Operators are not counted
(``torch.ops.aten._to_copy``): a rule for one that a version lacks is left out. What is asked of a value (``op._schema``), or by a
name put together at run time, cannot be seen here.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("private_names.toml")
SOURCES = ("packages/*/src", "plugins/*/src")

PLACES = ("packages/vmap-core/src/vmap_core/torch_compat/", "packages/vmap-core/src/vmap_core/patching/", *(f"plugins/{p.name}/src/{p.name.replace('-', '_')}/_torch.py"
          for p in sorted(ROOT.glob("plugins/*"))))  # fmt: skip
"""Where private names may be, as the paths of those places begin."""
OPINFO_PLACES = (*PLACES, "packages/vmap-core/src/vmap_core/testing/", "packages/vmap-core/src/vmap_core/cli/opinfo.py")
"""Where those of ``torch.testing._internal`` may be: what runs PyTorch's own operator database."""


class Use(NamedTuple):
    """A private name, where the sources use it."""

    path: str
    line: int
    name: str


def is_private(name: str) -> bool:
    """Tell whether a full name counts.

    Examples:
        >>> [is_private(n) for n in ("torch._C._nn", "torch.add", "torch.Tensor.__add__", "torch.ops.aten._to_copy", "os._exit")]
        [True, False, False, False, False]
    """
    parts = name.split(".")
    private = any(p.startswith("_") and not p.endswith("__") for p in parts)
    return parts[0] == "torch" and parts[1:2] != ["ops"] and private


def scan(root: Path = ROOT) -> list[Use]:
    """Return each use of a private name in the sources, by file and line."""
    files = sorted(path for pattern in SOURCES for folder in root.glob(pattern) for path in folder.rglob("*.py"))
    return [
        Use(path.relative_to(root).as_posix(), line, name) for path in files for line, name in uses(path.read_text())
    ]


def uses(source: str) -> list[tuple[int, str]]:
    """Return the private names that a module's source uses, with their lines.

    Examples:
        >>> uses("from torch import _C as c, Tensor\\nnn = c._nn\\nnn.gelu(x)\\nTensor._typed_storage")
        [(1, 'torch._C'), (2, 'torch._C._nn'), (3, 'torch._C._nn.gelu'), (4, 'torch.Tensor._typed_storage')]
        >>> uses("import torch\\nhasattr(torch._C, '_nn'), find('torch._refs.add')")
        [(2, 'torch._C._nn'), (2, 'torch._refs.add')]
    """
    tree = ast.parse(source)
    known: dict[str, str] = {}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            known |= _imports(node)
            found |= {(node.lineno, full) for full in _imports(node).values()}
    for node in tree.body:  # a module's own name for it
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and _full(node.value, known):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            known.setdefault(getattr(target, "id", ""), _full(node.value, known))
    found |= set(_read(tree, known))
    return sorted((line, name) for line, name in found if is_private(name))


def _imports(node: ast.ImportFrom | ast.Import) -> dict[str, str]:
    """Return what each name that an import binds stands for."""
    if isinstance(node, ast.ImportFrom):
        return {} if node.level else {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return {a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0] for a in node.names}


def _full(node: ast.AST, known: dict[str, str]) -> str:
    """Return the full name that an expression stands for, or ""; getattr and hasattr with a text are attributes, too."""
    if isinstance(node, ast.Name):
        return known.get(node.id, "")
    if isinstance(node, ast.Attribute):
        value, name = _full(node.value, known), node.attr
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
        value, name = _full(node.args[0], known), getattr(node.args[1], "value", None)
    else:
        return ""
    return f"{value}.{name}" if value and isinstance(name, str) else ""


def _read(node: ast.AST, known: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Yield the full names that are read, the longest ones only, and those written as text."""
    full = re.sub(r"\.(__\w+__|_vmap_).*", "", _full(node, known))  # any object has the one, the other is ours
    if full:
        yield node.lineno, full  # type: ignore[attr-defined]
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"torch(\.\w+)+", node.value):
        yield node.lineno, node.value
    for child in ast.iter_child_nodes(node):
        yield from _read(child, known)


def misplaced(
    found: Iterable[Use], places: tuple[str, ...] = PLACES, opinfo: tuple[str, ...] = OPINFO_PLACES
) -> list[Use]:
    """Return the uses that are outside the places where they may be."""
    return [
        use
        for use in found
        if not use.path.startswith(opinfo if use.name.startswith("torch.testing._internal") else places)
    ]


def exists(name: str) -> bool:
    """Tell whether the installed PyTorch has a name.

    Examples:
        >>> exists("torch._C._nn"), exists("torch._C._no_such_name"), exists("torch._functorch.apis.vmap_impl")
        (True, False, True)
    """
    found = importlib.import_module("torch")
    at = "torch"
    for part in name.split(".")[1:]:
        at = f"{at}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(at)
            except ImportError:
                return False
        if (found := getattr(found, part, sys.modules.get(at))) is None:
            return False
    return True


class Listed(NamedTuple):
    """What private_names.toml says.

    Attributes:
        versions: the minor versions of PyTorch that were looked at.
        names: private name -> those of them that have it.
        unseen: those of the names that the scan cannot see, kept by hand.
    """

    versions: list[str]
    names: dict[str, list[str]]
    unseen: set[str]


def listed(path: Path = LIST) -> Listed:
    """Return the list."""
    data = tomllib.loads(path.read_text())
    names = {n: data["versions"] for n in data["in_all"]} | data["in_some"]
    return Listed(data["versions"], names, set(data["unseen"]))


def text(entries: Listed) -> str:
    """Return the list as TOML."""
    names, versions = entries.names, entries.versions

    def array(items: Iterable[str]) -> str:
        return "[\n" + "".join(f'  "{i}",\n' for i in sorted(items)) + "]\n"

    def inline(items: Iterable[str]) -> str:
        return "[" + ", ".join(f'"{i}"' for i in items) + "]\n"

    return (
        "# PyTorch's private names that the sources use. Written by python -m tests.compatibility.private_names --write,\n"
        "# all but `unseen`: names asked for by a text put together at run time, which are kept by hand.\n"
        f"versions = {inline(versions)}unseen = {array(entries.unseen)}"
        f"in_all = {array(n for n in names if names[n] == versions)}\n[in_some]  # name -> the versions that have it\n"
        + "".join(f'"{n}" = {inline(names[n])}' for n in sorted(names) if names[n] != versions)
    )


def minor() -> str:
    """Return the installed PyTorch's minor version."""
    return ".".join(importlib.import_module("torch").__version__.split(".")[:2])


def brought_up_to_date(entries: Listed, used: set[str]) -> Listed:
    """Return the list with the names in use, and with what the installed PyTorch has; of others a new name keeps no record."""
    this = minor()
    versions = sorted({*entries.versions, this}, key=_number)
    names = {}
    for name in used | entries.unseen:
        others = [v for v in entries.names.get(name, entries.versions) if v != this]
        names[name] = sorted(others + [this] * exists(name), key=_number)
    return Listed(versions, names, entries.unseen - used)


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def differences(entries: Listed, used: set[str]) -> tuple[list[str], list[str]]:
    """Return what the list and the sources do not agree on, and what the list and the installed PyTorch do not.

    With a PyTorch of a minor version that is not in the list, those of the newest version in it count.
    """
    apart = [f"{n}: used, not listed" for n in sorted(used - entries.names.keys())]
    apart += [f"{n}: listed, not used" for n in sorted(entries.names.keys() - entries.unseen - used)]
    this = minor() if minor() in entries.versions else entries.versions[-1]
    wrong = [f"{n}: PyTorch {minor()} {'lacks' if this in versions else 'has'} it, unlike {this} by the list"
             for n, versions in sorted(entries.names.items()) if exists(n) != (this in versions)]  # fmt: skip
    return apart, wrong


def main(arguments: list[str] | None = None) -> int:
    """Run it as a command; return 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.compatibility.private_names", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help="bring private_names.toml up to date")
    parser.add_argument(
        "--check-places", action="store_true", help="name those outside the modules that are there for them"
    )
    options = parser.parse_args(arguments)
    found = scan()
    if options.check_places:
        problems = [f"{use.path}:{use.line}: {use.name}" for use in misplaced(found)]
    elif options.write:
        LIST.write_text(text(brought_up_to_date(listed(), {use.name for use in found})))
        problems = []
    else:
        apart, wrong = differences(listed(), {use.name for use in found})
        problems = apart + wrong
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
