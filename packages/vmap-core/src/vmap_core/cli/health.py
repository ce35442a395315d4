"""What may be wrong with an installation."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..errors import PackConflictError
from ..levels.head import SAFE
from ..patching import patches
from ..rulekit.discovery import VARIABLE, reason, remedy
from ..rulekit.packs import KNOWN_PACKS, current_table, packs
from ..torch_compat.versions import TRIED


@dataclass(frozen=True)
class Finding:
    """One line: ``level`` is ok, note or problem."""

    level: str
    text: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at versions, packs and conflicts, and map a function."""
    return list(_findings())


def _findings() -> Iterator[Finding]:
    cuda = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no GPU"
    yield Finding("ok", f"Python {platform.python_version()}, torch {torch.__version__}, {cuda}")
    yield from _requirements()
    for name, version in (("torch", torch.__version__), ("Python", platform.python_version())):
        yield from _untried(name, version)
    if VARIABLE in os.environ:
        yield Finding("note", f"{VARIABLE}={os.environ[VARIABLE]} chooses the packs")
    try:
        found = packs()
    except ValueError as error:
        yield Finding("problem", str(error), f"correct or unset {VARIABLE}")
        return
    except PackConflictError as error:
        yield Finding("problem", str(error), f"uninstall one of them, or choose with {VARIABLE}")
        return
    core = found[0].version
    for p in found:
        if p.error is not None:
            yield Finding("problem", f"pack {p.name} ({p.distribution} {p.version}) does not load: {reason(p.error)}",
                          f"{remedy(p.error) or f'pip install --force-reinstall {p.distribution}'}, or leave it out with {VARIABLE}")  # fmt: skip
        elif p.distribution in KNOWN_PACKS and _minor(p.version) != _minor(core):
            yield Finding("problem", f"pack {p.name} is of version {p.version}, vmap-core of {core}",
                          f"pip install --upgrade vmap-core {p.distribution}")  # fmt: skip
        else:
            yield Finding(
                "ok", f"pack {p.name}: {p.distribution} {p.version}, {p.rules} rule{'' if p.rules == 1 else 's'}"
            )
        if p.missing:
            yield Finding("note", f"pack {p.name} has rules for what torch {torch.__version__} lacks: {', '.join(p.missing)}",
                          "nothing to do: they are left out")  # fmt: skip
    if VARIABLE not in os.environ:
        for distribution in KNOWN_PACKS:
            if distribution.removeprefix("vmap-") not in {p.name for p in found}:
                yield Finding("note", f"{distribution} is not installed: its operators run in the slow loop, or not at all",
                              f"pip install {distribution}")  # fmt: skip
    try:
        current_table()
    except PackConflictError as error:
        yield Finding("problem", str(error))
        return
    replaced = [p for p in patches() if p.state != "missing"]
    yield _head()
    yield Finding("ok", f"{len(replaced)} patches of PyTorch, {sum(p.inside for p in replaced)} of them only inside mapped "
                        f"functions; vmap_core.patches() lists them")  # fmt: skip
    for missing in (p for p in patches() if p.state == "missing"):
        yield Finding("problem", f"this PyTorch has no {missing.target}, which is to be replaced: {missing.why}")
    yield from _run()


def _head() -> Finding:
    """Say what C++ finds in a BatchedTensor; see `levels.head`."""
    if SAFE is None:
        return Finding("ok", "a batched tensor is a plain object that C++ can hold: its memory was looked at")
    return Finding("note", f"a batched tensor is a subclass of Tensor, which takes longer to make: {SAFE}")


def _untried(name: str, version: str) -> Iterator[Finding]:
    tried = TRIED[name]
    if _minor(version) not in tried:
        older, newer = _numbers(version) < _numbers(tried[0]), _numbers(version) > _numbers(tried[-1])
        compared = "older than" if older else "newer than" if newer else "none of"
        yield Finding("note", f"{name} {version} is {compared} those that were tried, {tried[0]} to {tried[-1]}",
                      "it may work: vmap_core.check compares a function of yours with the loop")  # fmt: skip


def _requirements() -> Iterator[Finding]:
    try:
        wanted = importlib.metadata.requires("vmap-core") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("note", "vmap-core runs from its sources: no distribution is installed")
        return
    for line in wanted:
        requirement, _, condition = line.partition(";")
        if condition:  # of an extra
            continue
        name, bounds = bounds_of(requirement)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("problem", f"{name} is not installed", f"pip install '{requirement}'")
            continue
        if not all(within(version, bound) for bound in bounds):
            yield Finding("problem", f"{name} {version} is installed, vmap-core wants {','.join(bounds)}",
                          f"pip install '{requirement}'")  # fmt: skip


def bounds_of(requirement: str) -> tuple[str, list[str]]:
    """Return the name of a distribution that is required, and the bounds of its version.

    Examples:
        >>> bounds_of("pluggy<2,>=1.5"), bounds_of("torch")
        (('pluggy', ['<2', '>=1.5']), ('torch', []))
    """
    name = re.match(r"[\w.-]+", requirement.strip())
    assert name, requirement
    return name[0], re.findall(r"[<>=!~]+[\w.*+]+", requirement.replace(" ", ""))


def within(version: str, bound: str) -> bool:
    """Tell whether a version keeps a bound, ``>=`` or ``<``; only the numbers it begins with count, not ``rc1`` or ``+cpu``.

    Examples:
        >>> within("2.15.0a0+git123", ">=2.10"), within("2.9.1", ">=2.10"), within("2.0", "<2")
        (True, False, False)
    """
    sign, wanted = re.fullmatch(r"(>=|<)([\d.]+)", bound).groups()  # type: ignore[union-attr]  # a test holds all to it
    return (_numbers(version) >= _numbers(wanted)) == (sign == ">=")


def _numbers(version: str) -> list[int]:
    """Return the numbers that a version begins with, without zeros at the end: 2.0 is 2."""
    found = re.match(r"[\d.]*\d", version)
    numbers = [int(n) for n in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _run() -> Iterator[Finding]:
    from ..transform.vmap import vmap

    x = torch.arange(12.0).reshape(4, 3)
    try:
        right = torch.equal(vmap(torch.dot)(x, x), (x * x).sum(1))
    except Exception as error:
        yield Finding("problem", f"a first vmap fails: {error!r}")
        return
    yield Finding(
        "ok" if right else "problem", "a first vmap gives " + ("the right result" if right else "a wrong result")
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
