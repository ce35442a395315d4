"""Finding rule packs: the pluggy hook, discovery on first use, and which packs are in force."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import importlib.metadata
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pluggy

from ..errors import PackConflictError, internal_modules
from .rule import RulePack, Table

GROUP = "vmap.rules"
VARIABLE = "VMAP_PACKS"
CHECKS = os.environ.get("VMAP_CHECK", "0") != "0"  # check what the rules of this project return, too

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


@dataclass(frozen=True)
class PackInfo:
    """What `packs` tells of one pack.

    Attributes:
        name: the pack's name.
        distribution: the distribution it came with.
        version: that distribution's version.
        rules: number of rules; 0 if it could not be loaded.
        error: the exception that kept it from loading, or None.
        missing: operators it has rules for and this version of PyTorch does not have, by name.
    """

    name: str
    distribution: str
    version: str
    rules: int
    error: Exception | None = None
    missing: tuple[str, ...] = ()


class _Registry:
    """All packs this process knows of; filled once, on first use."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.loaded = False
        self.packs: dict[str, list[RulePack]] = {}
        self.origin: dict[str, tuple[str, str]] = {}
        self.broken: dict[str, Exception] = {}
        self.tables: dict[tuple[str, ...] | None, Table] = {}

    def load(self) -> None:
        """Discover packs: the core's own, then those named by entry points, sorted by name."""
        with self.lock:
            if self.loaded:
                return
            self.loaded = True
            try:
                self._discover()
            except BaseException:
                self.loaded = False
                raise

    def _discover(self) -> None:
        manager = pluggy.PluginManager("vmap")
        manager.add_hookspecs(Specs)
        self._load_one(manager, "core", [CORE])
        if "core" in self.broken:
            raise self.broken["core"]
        self.origin["core"] = ("vmap-core", _version("vmap-core"))
        offered: dict[str, list[importlib.metadata.EntryPoint]] = collections.defaultdict(list)
        for entry_point in importlib.metadata.entry_points(group=GROUP):
            if entry_point not in offered[entry_point.name]:
                offered[entry_point.name].append(entry_point)
        for name in chosen(sorted(offered)):
            self._load_one(manager, name, offered[name])

    def _load_one(
        self, manager: pluggy.PluginManager, name: str, entry_points: list[importlib.metadata.EntryPoint]
    ) -> None:
        dists = sorted({e.dist.name for e in entry_points if e.dist is not None})
        if len(dists) > 1:
            raise PackConflictError(f"pack {name!r} is offered by several distributions: {', '.join(dists)}")
        dist = entry_points[0].dist
        self.origin[name] = (dist.name, dist.version) if dist is not None else ("unknown", "unknown")
        try:  # one broken pack must not take the others down
            plugin = entry_points[0].load()
            internal_modules.add(entry_points[0].module.partition(".")[0])
            manager.register(plugin, name=name)
            manager.check_pending()
            found = [p for impl in manager.hook.vmap_rules.get_hookimpls() if impl.plugin_name == name
                     for p in cast(Any, impl.function())]  # fmt: skip
            for pack in found:
                if not isinstance(pack, RulePack):
                    raise TypeError(f"vmap_rules() of {name!r} returned {pack!r}, which is no RulePack")
            self.packs[name] = found
        except Exception as error:
            self.broken[name] = error
            if manager.has_plugin(name):
                manager.unregister(name=name)

    def table(self, names: tuple[str, ...] | None) -> Table:
        """Return the table of the named packs (None: all that were loaded), made once."""
        table = self.tables.get(names)
        if table is None:
            self.load()
            with self.lock:
                keys = list(self.packs) if names is None else ["core", *names]
                unknown = [k for k in keys if k not in self.packs]
                if unknown:
                    raise _unknown(unknown, self)
                table = self.tables[names] = Table((p for k in keys for p in self.packs[k]), CHECKS)
        return table


_registry = _Registry()
_selected: contextvars.ContextVar[tuple[str, ...] | None] = contextvars.ContextVar("vmap_packs", default=None)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _unknown(names: Sequence[str], registry: _Registry) -> Exception:
    broken = [f"{n} ({registry.broken[n]!r})" for n in names if n in registry.broken]
    if broken:
        return ImportError(f"vmap rule pack failed to load: {', '.join(broken)}")
    return ValueError(f"no vmap rule pack named {', '.join(map(repr, names))}; installed: {sorted(registry.packs)}")


def chosen(offered: list[str]) -> list[str]:
    """Return the packs that the environment variable VMAP_PACKS picks; all of them if it is not set."""
    variable = os.environ.get(VARIABLE)
    if variable is None:
        return offered
    names = [n.strip() for n in variable.split(",") if n.strip() and n.strip() != "core"]
    unknown = [n for n in names if n not in offered]
    if unknown:
        raise ValueError(f"{VARIABLE}={variable}: no such vmap rule pack: {', '.join(unknown)}; installed: {offered}")
    return names


def current_table() -> Table:
    """Return the rules in force in this context."""
    names = _selected.get()
    table = _registry.tables.get(names)
    return _registry.table(names) if table is None else table


def packs() -> list[PackInfo]:
    """List the rule packs, the broken ones among them.

    Returns:
        One `PackInfo` a pack, the core's own first.

    Examples:
        >>> import vmap_core
        >>> vmap_core.packs()[0].name
        'core'
    """
    _registry.load()
    infos = []
    for name, (dist, version) in _registry.origin.items():
        mine = _registry.packs.get(name, [])
        missing = sorted({operator for p in mine for operator in p.missing})
        rules = sum(len(p.rules) for p in mine)
        infos.append(PackInfo(name, dist, version, rules, _registry.broken.get(name), tuple(missing)))
    return infos


@contextlib.contextmanager
def use_packs(*names: str) -> Iterator[None]:
    """Use only the named packs, and the core's own rules, within a ``with`` block.

    Args:
        names: names of installed packs, as `packs` lists them.

    Raises:
        ValueError: no such pack is installed.
        ImportError: the pack failed to load.
        PackConflictError: two of them have a rule for one operator.

    Examples:
        >>> import torch, vmap_core
        >>> with vmap_core.use_packs():
        ...     vmap_core.vmap(torch.cos)(torch.zeros(2))
        tensor([1., 1.])
    """
    key = tuple(sorted(n for n in names if n != "core"))
    _registry.table(key)
    token = _selected.set(key)
    try:
        yield
    finally:
        _selected.reset(token)


def checking() -> contextlib.AbstractContextManager[None]:
    """Check what all rules return, within a ``with`` block."""
    return table_in_force(current_table().checked())


@contextlib.contextmanager
def table_in_force(table: Table) -> Iterator[None]:
    """Use a table made for the purpose, within a ``with`` block."""
    key = (f"<table {id(table)}>",)
    _registry.tables[key] = table
    token = _selected.set(key)
    try:
        yield
    finally:
        _selected.reset(token)
        _registry.tables.pop(key, None)


def register(pack: RulePack) -> None:
    """Add a pack made in this process, beside those found by entry points.

    Raises:
        PackConflictError: a pack of that name exists, or one of its rules clashes with another pack's.
    """
    _registry.load()
    with _registry.lock:
        if pack.name in _registry.packs:
            raise PackConflictError(f"a pack named {pack.name!r} is registered already")
        Table([*(p for ps in _registry.packs.values() for p in ps), pack])
        _registry.packs[pack.name] = [pack]
        _registry.origin[pack.name] = ("this process", "")
        _registry.tables.clear()


def unregister(name: str) -> None:
    """Take a pack that `register` added out again."""
    with _registry.lock:
        if _registry.origin.get(name, ("",))[0] != "this process":
            raise ValueError(f"no pack named {name!r} was registered in this process")
        del _registry.packs[name], _registry.origin[name]
        _registry.tables.clear()


# Packs of this project that a user may not have installed: operators by how a word of their name begins.
KNOWN_PACKS = {
    "vmap-cuda": (
        "cudnn", r"flash_attention\.", "flash_attention_forward", r"flash_attention_backward\.", "efficient_attention",
        "scaled_mm", "grouped_mm", "int_mm", "fused_adam", "fused_adagrad", "fused_sgd", "fused_dropout", "thnn_fused",
        "record_stream",
    ),
    "vmap-autograd": ("backward", "autograd"),
    "vmap-linalg": ("linalg", "cholesky", "lu_", "qr", "svd", "eig", "ldl", "ormqr", "solve", "cdist", "pdist", "aten.renorm"),
    "vmap-nn": ("conv", "pool", "norm", "loss", "attention", "embedding", "upsample", "grid_sampl", "rnn", "lstm", "gru"),
}  # fmt: skip


def is_own(pack: str) -> bool:
    """Tell whether a pack, or how a call runs without one, is this project's."""
    return re.split(r"\W", pack, maxsplit=1)[0] in _OWN


_OWN = {"core", *(distribution.removeprefix("vmap-") for distribution in KNOWN_PACKS)}


def install_hint(op: Any) -> str:
    """Say what to do about a missing rule: install a pack that has it, or write it."""
    name = str(op)
    for distribution, parts in KNOWN_PACKS.items():
        if distribution.removeprefix("vmap-") not in _registry.packs and re.search(
            rf"(?<![a-z])({'|'.join(parts)})", name
        ):
            return f"Its rule comes with {distribution}: pip install {distribution}"
    for pack, error in _registry.broken.items():
        return f"Pack {pack!r} failed to load ({error!r}). To add a rule, see vmap_core.extend.RulePack."
    return "To add a rule, see vmap_core.extend.RulePack."
