"""Loading rule packs: entry points, the pluggy hook, and what is said of a pack that does not load."""

from __future__ import annotations

import collections
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, cast

import pluggy

from ..errors import PackConflictError, internal_modules
from .rule import RulePack

GROUP = "vmap.rules"
VARIABLE = "VMAP_PACKS"

# The core's own rules: a pack like any other's, also where the core runs from its sources.
CORE = importlib.metadata.EntryPoint("core", "vmap_core.rules", GROUP)

hookspec = pluggy.HookspecMarker("vmap")
hookimpl = pluggy.HookimplMarker("vmap")
"""Decorates the function ``vmap_rules()`` of a pack's module, which returns the module's `RulePack` objects in a list."""


class Specs:
    """The hooks a rule pack may implement."""

    @hookspec
    def vmap_rules(self) -> list[RulePack]:
        """Return this pack's RulePacks, in a list."""
        raise AssertionError("a specification is never called")


def offered() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the entry points of the packs to load, by the pack's name: the core, then those that VMAP_PACKS picks.

    Raises:
        PackConflictError: two distributions offer a pack of one name.
        ValueError: VMAP_PACKS names a pack that is not installed, or one twice.
    """
    found: dict[str, list[importlib.metadata.EntryPoint]] = collections.defaultdict(list)
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        if entry_point not in found[entry_point.name]:
            found[entry_point.name].append(entry_point)
    names = chosen(sorted(found))
    for name in names:
        if len(found[name]) == 1 and name != CORE.name:  # names of distributions take a while to read
            continue
        distributions = sorted({e.dist.name for e in found[name] if e.dist is not None})
        if name == CORE.name:
            distributions.append("vmap-core")
        if len(distributions) > 1:
            raise PackConflictError(f"pack {name!r} is offered by several distributions: {', '.join(distributions)}")
    return {CORE.name: CORE, **{name: found[name][0] for name in names}}


def chosen(installed: list[str]) -> list[str]:
    """Return the packs that the environment variable VMAP_PACKS picks; all of them if it is not set."""
    variable = os.environ.get(VARIABLE)
    if variable is None:
        return installed
    names = [n.strip() for n in variable.split(",") if n.strip() and n.strip() != CORE.name]
    unknown = [n for n in names if n not in installed]
    if unknown:
        raise ValueError(f"{VARIABLE}={variable}: no such vmap rule pack: {', '.join(unknown)}; installed: {installed}")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"{VARIABLE}={variable} names a vmap rule pack twice: {', '.join(twice)}")
    return names


def import_plugin(entry_point: importlib.metadata.EntryPoint) -> Any:
    """Import the module, or the object in it, that an entry point names.

    Raises:
        ImportError: among others, if the module is being imported right now, and has itself called vmap.
    """
    plugin = None
    try:
        plugin = entry_point.load()
    except (ImportError, AttributeError):
        if not is_being_imported(entry_point):
            raise
    if is_being_imported(entry_point):
        raise ImportError(f"{entry_point.module} calls vmap while it is imported: its rules come when that is done")
    return plugin


def is_being_imported(entry_point: importlib.metadata.EntryPoint) -> bool:
    """Tell whether a pack's module, or a package that it is in, has not run to its end yet."""
    parts = entry_point.module.split(".")
    modules = (sys.modules.get(".".join(parts[: i + 1])) for i in range(len(parts)))
    return any(getattr(getattr(m, "__spec__", None), "_initializing", False) for m in modules)


def rule_packs(name: str, entry_point: importlib.metadata.EntryPoint, plugin: Any) -> list[RulePack]:
    """Return what a pack's hook returns.

    Raises:
        TypeError: there is no hook, or it returns something else.
    """
    manager = pluggy.PluginManager("vmap")
    manager.add_hookspecs(Specs)
    manager.register(plugin, name=name)
    manager.check_pending()
    implementations = manager.hook.vmap_rules.get_hookimpls()
    if not implementations:
        lack = "is not decorated with" if hasattr(plugin, "vmap_rules") else "is not there; it is to be decorated with"
        raise TypeError(f"vmap_rules() of {entry_point.value} {lack} @vmap_core.extend.hookimpl")
    found: list[RulePack] = []
    for implementation in implementations:
        returned = cast(Any, implementation.function())
        if not isinstance(returned, Sequence) or not all(isinstance(pack, RulePack) for pack in returned):
            raise TypeError(f"vmap_rules() of {entry_point.value} returned {returned!r}, which is no list of RulePacks")
        found += returned
    internal_modules.add(entry_point.module.partition(".")[0])
    return found


def note_place(error: BaseException, name: str) -> None:
    """Note at an error where it arose; the traceback goes, as it would keep alive what its frames hold."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    error.add_note(f"while loading rule pack {name!r}, at {frames[-1].filename}:{frames[-1].lineno}")
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__, seen = None, seen.__cause__ or seen.__context__


def reason(error: BaseException) -> str:
    """Say in a line why a pack did not load, where, and what to do if that is clear."""
    text = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
    notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    return f"{text}{notes}{f'; {remedy(error)}' if remedy(error) else ''}"


def remedy(error: BaseException) -> str:
    """Return how to get the module that a pack imports and that is not installed; "" for any other error."""
    top = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else ""
    return f"pip install {top}" if top and top not in sys.modules and importlib.util.find_spec(top) is None else ""
