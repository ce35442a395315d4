"""Which rule packs there are, and which are in force."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import importlib.metadata
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PackConflictError
from ..torch_compat.state import initial_state
from .discovery import import_plugin, is_being_imported, note_place, offered, reason, rule_packs
from .rule import RulePack, Table

CHECKS = os.environ.get("VMAP_CHECK", "0") != "0"  # check what the rules of this project return, too


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
    error: BaseException | None = None
    missing: tuple[str, ...] = ()


class _Registry:
    """All packs this process knows of: loaded on first use, and those that fail again later."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.offered: dict[str, importlib.metadata.EntryPoint] | None = None
        self.packs: dict[str, list[RulePack]] = {}
        self.origin: dict[str, tuple[str, str]] = {}
        self.broken: dict[str, BaseException] = {}
        self.in_hook: set[str] = set()
        self.tables: dict[tuple[str, ...] | None, Table] = {}  # by what is asked for
        self.made: dict[tuple[str, ...], Table] = {}  # by the packs in it

    def load(self) -> None:
        """Load the packs that are not loaded: all of them on first use, later those that have failed.

        Modules are imported without the lock: another thread may be importing one that itself calls vmap.
        """
        with self.lock:
            if self.offered is None:
                self.offered = offered()
            wanted = {name: entry_point for name, entry_point in self.offered.items() if name not in self.packs}
        with _collecting_later():
            for name, entry_point in wanted.items():
                self._load_one(name, entry_point)

    def _load_one(self, name: str, entry_point: importlib.metadata.EntryPoint) -> None:
        try:
            with initial_state():
                plugin = import_plugin(entry_point)
            with self.lock, initial_state():
                self._take_in(name, entry_point, plugin)
        except BaseException as error:  # one broken pack takes no other down, nor the process by SystemExit
            if name == "core" or isinstance(error, KeyboardInterrupt):
                raise
            note_place(error, name)
            with self.lock:
                if name not in self.packs:
                    self.broken[name] = error

    def _take_in(self, name: str, entry_point: importlib.metadata.EntryPoint, plugin: Any) -> None:
        if name in self.packs or name in self.in_hook:  # by another thread; by this one, in a vmap that the hook calls
            return
        self.in_hook.add(name)
        try:
            self.packs[name] = rule_packs(name, entry_point, plugin)
        finally:
            self.in_hook.discard(name)
        self.broken.pop(name, None)
        self.tables.clear()

    def table(self, names: tuple[str, ...] | None) -> Table:
        """Return the table of the named packs (None: all that load), made once for each set of packs."""
        if names is None or not self.packs.keys() >= {"core", *names}:
            self.load()
        with self.lock:
            keys = tuple(self.packs) if names is None else ("core", *names)
            unknown = [k for k in keys if k not in self.packs]
            if unknown:
                raise _unknown(unknown, self)
            table = self.made.get(keys)
            if table is None:
                table = self.made[keys] = Table((p for k in keys for p in self.packs[k]), CHECKS)
            if not self._soon_more():
                self.tables[names] = table
        return table

    def _soon_more(self) -> bool:
        """Tell whether a pack is just being loaded: a vmap that its module or its hook calls does without."""
        known = self.offered or {}
        return bool(self.in_hook) or any(is_being_imported(known[name]) for name in self.broken if name in known)

    def origin_of(self, name: str) -> tuple[str, str]:
        """Return the distribution that a pack came with, and its version; metadata takes a while to read."""
        if name not in self.origin and self.offered:
            dist = self.offered[name].dist
            of_core = ("vmap-core", _version("vmap-core"))
            self.origin[name] = of_core if dist is None else (dist.name, dist.version)
        return self.origin[name]

    def forget_tables(self) -> None:
        """Make tables anew: another pack may now go by the same name."""
        self.tables.clear()
        self.made.clear()

    def missed(self, error: BaseException) -> str:
        """Say why a pack did not load; the next vmap tries it again."""
        self.tables.pop(None, None)
        return reason(error)


@contextlib.contextmanager
def _collecting_later() -> Iterator[None]:
    """Leave garbage where it is within a ``with`` block: to collect it goes through all of PyTorch's objects, in 0.1 s."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_registry = _Registry()
_selected: contextvars.ContextVar[tuple[str, ...] | Table | None] = contextvars.ContextVar("vmap_packs", default=None)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _unknown(names: Sequence[str], registry: _Registry) -> Exception:
    broken = [f"{n}: {reason(registry.broken[n])}" for n in names if n in registry.broken]
    if broken:
        return ImportError(f"vmap rule pack failed to load: {'; '.join(broken)}")
    return ValueError(f"no vmap rule pack named {', '.join(map(repr, names))}; installed: {sorted(registry.packs)}")


def current_table() -> Table:
    """Return the rules in force in this context."""
    selected = _selected.get()
    table = _registry.tables.get(selected)  # type: ignore[arg-type]  # a table made for the purpose is not in there
    if table is None:
        table = selected if isinstance(selected, Table) else _registry.table(selected)
    return table


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
    for name in dict.fromkeys([*(_registry.offered or ()), *_registry.origin]):
        dist, version = _registry.origin_of(name)
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
    key = tuple(sorted({*names} - {"core"}))
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
    token = _selected.set(table)
    try:
        yield
    finally:
        _selected.reset(token)


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
        _registry.forget_tables()


def unregister(name: str) -> None:
    """Take a pack that `register` added out again."""
    with _registry.lock:
        if _registry.origin.get(name, ("",))[0] != "this process":
            raise ValueError(f"no pack named {name!r} was registered in this process")
        del _registry.packs[name], _registry.origin[name]
        _registry.forget_tables()


# Packs of this project that a user may not have installed: operators by how a word of their name begins.
KNOWN_PACKS = {
    "vmap-cuda": (
        "cudnn", r"flash_attention\.", "flash_attention_forward", r"flash_attention_backward\.", "efficient_attention",
        "scaled_mm", "grouped_mm", "int_mm", "fused_adam", "fused_adagrad", "fused_sgd", "fused_dropout", "thnn_fused",
        "record_stream",
    ),
    "vmap-autograd": ("backward", "autograd"),
    "vmap-control-flow": ("cond", "while_loop", "scan", "map_impl"),
    "vmap-linalg": ("linalg", "cholesky", "lu_", "qr", "svd", "eig", "ldl", "ormqr", "solve", "cdist", "pdist", "aten.renorm"),
    "vmap-nn": ("conv", "pool", "norm", "loss", "attention", "embedding", "upsample", "grid_sampl", "rnn", "lstm", "gru"),
}  # fmt: skip


def is_own(pack: str) -> bool:
    """Tell whether a pack, or how a call runs without one, is this project's."""
    return re.split(r"\W", pack, maxsplit=1)[0] in _OWN


_OWN = {"core", *(distribution.removeprefix("vmap-") for distribution in KNOWN_PACKS)}


def install_hint(op: Any) -> str:
    """Say what to do about a missing rule: get a pack that has it, or write it."""
    name = str(op)
    for distribution, parts in KNOWN_PACKS.items():
        if distribution.removeprefix("vmap-") not in _registry.packs and re.search(
            rf"(?<![a-z])({'|'.join(parts)})", name
        ):
            return f"Its rule comes with {source(distribution)}"
    broken = [*_registry.broken.items()]
    failed = "".join(f"Pack {pack!r} did not load: {_registry.missed(error)}. " for pack, error in broken)
    return f"{failed}To add a rule, see vmap_core.extend.RulePack."


def source(distribution: str) -> str:
    """Return the name of a pack of this project, and how to get it: install it, or mend what keeps it from loading."""
    error = _registry.broken.get(distribution.removeprefix("vmap-"))
    if error is not None:
        return f"{distribution}, which did not load: {_registry.missed(error)}"
    return f"{distribution}: pip install {distribution}"
