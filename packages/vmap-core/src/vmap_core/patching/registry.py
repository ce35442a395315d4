"""What is replaced in PyTorch: each replacement is a `Patch`, which can be taken back.

There are two kinds. A patch that costs something, or that torch.compile would notice, is in place only while a mapped
function runs somewhere in this process. Any other stays, and tells torch.compile what it stands for.

Note [In place while a mapped function runs]: vmap is entered often, so what happens there is a function made for the
purpose, a line for each patch. A function in Python is given other code: it stays the object that it is, and is served
wherever somebody has kept it (``apply = MyFunction.apply``); anything else is replaced in its module. Who is inside, in
any thread, is kept in a dict. "Nobody is", and the lines that follow, are one step for other threads, since CPython
lets them run at calls and at jumps back only; where it has no GIL the patches stay in place.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ClassMethodDescriptorType, CodeType, FunctionType, ModuleType
from typing import Any

from ..levels.presence import presence
from ..rulekit.packs import packs
from ..torch_compat.imports import when_imported

TRIED = ("2.11", "2.13", "2.14", "2.15")

_ABSENT: Any = object()
_patches: list[Patch] = []
_lock = threading.RLock()


@dataclass(frozen=True)
class _Place:
    """An attribute, what it was, and what it is while the patch is in place."""

    holder: Any
    name: str
    kept: Any
    new: Any


class Patch:
    """One replacement in PyTorch.

    Attributes:
        target: the dotted name of what is replaced.
        why: the reason.
        inside: whether it is in place only while a mapped function runs.
        tried: the versions of PyTorch that it was tried on.
    """

    def __init__(
        self, target: str, make: Callable[[Any], Any], why: str, *, inside: bool = False, holders: tuple[str, ...] = (),
        waits_for: str | None = None, tried: tuple[str, ...] = TRIED,
    ) -> None:  # fmt: skip
        """Make a patch; it is listed, and not installed yet.

        Args:
            target: the dotted name of what is replaced.
            make: makes what takes its place, given what does now.
            why: the reason, in a sentence.
            inside: put it in place only while a mapped function runs.
            holders: dotted names of other modules that have the same object under the same name.
            waits_for: a module to wait for, rather than to import.
            tried: the versions of PyTorch that it was tried on.
        """
        self.target = target
        self.make = make
        self.why = why
        self.inside = inside
        self.holders = holders
        self.waits_for = waits_for
        self.tried = tried
        self._places: list[_Place] = []
        with _lock:
            _patches.append(self)

    def __repr__(self) -> str:
        """Say what is replaced, and whether it is."""
        return f"<patch of {self.target}, {self.state}>"

    @property
    def state(self) -> str:
        """``"installed"``, ``"uninstalled"``, ``"waiting"`` for a module, or ``"missing"`` from this PyTorch."""
        if self._places:
            return "installed"
        if self.waits_for is not None and self.waits_for not in sys.modules:
            return "waiting"
        return "missing" if _find(self.target)[1] is _ABSENT else "uninstalled"

    def install(self) -> Patch:
        """Put it in force, if this PyTorch has what it replaces; again is harmless."""
        if self.waits_for is not None and self.waits_for not in sys.modules:
            when_imported(self.waits_for, lambda module: self.install())
            return self
        with _lock:
            if not self._places:
                self._places = self._find_places()
                if self.inside:
                    _watch_presence()
                else:
                    for place in self._places:
                        setattr(place.holder, place.name, place.new)
        return self

    def uninstall(self) -> None:
        """Take it back: everything is what it was."""
        with _lock:
            places, self._places = self._places, []
            if self.inside:
                _watch_presence(*places)
            else:
                for place in places:
                    setattr(place.holder, place.name, place.kept)

    def _find_places(self) -> list[_Place]:
        holder, kept = _find(self.target)
        if kept is _ABSENT:
            return []
        function = getattr(kept, "__func__", kept)
        if self.inside and type(function) is FunctionType:
            code = function.__code__
            native = FunctionType(
                code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
            )
            native.__kwdefaults__ = function.__kwdefaults__
            return [_Place(function, "__code__", code, _calling(self.make(native), code))]
        of_class = isinstance(kept, classmethod | ClassMethodDescriptorType)
        name = self.target.rpartition(".")[2]
        native = function if of_class else getattr(holder, name)
        new: Any = functools.update_wrapper(self.make(native), native)
        new.__dict__.setdefault("_torchdynamo_inline", native)  # torch.compile looks at that instead
        holders = [holder, *(h for h in map(_resolved, self.holders) if getattr(h, name, None) is kept)]
        return [_Place(h, name, kept, classmethod(new) if of_class else new) for h in holders]


def patch(target: str, why: str, **options: Any) -> Callable[[Callable[[Any], Any]], Patch]:
    """Make a `Patch` of the function below, which takes what is replaced and returns what takes its place.

    Args:
        target: the dotted name of what is replaced.
        why: the reason, in a sentence.
        **options: further arguments of `Patch`.
    """
    return lambda make: Patch(target, make, why, **options)


def install_all() -> None:
    """Install all patches that have been made; again is harmless."""
    for one in _patches:
        one.install()


def patches() -> list[Patch]:
    """List what is replaced in PyTorch, by the core and by the packs that are installed.

    Returns:
        A `Patch` for each, with its reason, its state, and whether it is in place only while a mapped function runs.

    Examples:
        >>> import vmap_core
        >>> {patch.state for patch in vmap_core.patches()} <= {"installed", "waiting", "missing"}
        True
    """
    packs()
    return list(_patches)


def _find(target: str) -> tuple[Any, Any]:
    """Return what holds a name, and what that is there: of a class, the entry of its own namespace."""
    path, _, name = target.rpartition(".")
    holder = _resolved(path)
    if holder is None:
        return None, _ABSENT
    if isinstance(holder, type):
        return holder, holder.__dict__.get(name, _ABSENT)
    return holder, getattr(holder, name, _ABSENT)


def _resolved(path: str) -> Any:
    """Return the module or class of a dotted name; None if there is none."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        outer, _, name = path.rpartition(".")
        return getattr(_resolved(outer), name, None) if outer else None


def _calling(function: Any, like: CodeType) -> CodeType:
    """Return code that hands all its arguments to a function, for a function that has had other code.

    It has the same free variables, made by the compiler: with their names alone, ``f_locals`` of its frame is a crash.
    """
    names: dict[str, Any] = {}
    exec(_STUB.format(free=", ".join(f"free_{i}" for i in range(len(like.co_freevars)))), names)
    code: CodeType = names["outer"](*like.co_freevars).__code__
    consts = tuple(function if const == "the function" else const for const in code.co_consts)
    return code.replace(co_consts=consts, co_freevars=like.co_freevars, co_name=like.co_name, co_filename=__file__)


_STUB = """
def outer({free}):
    def stub(*args, **kwargs):
        function = "the function"
        return function(*args, **kwargs)
        ({free})
    return stub
"""

_names: dict[str, Any] = {"inside": {}, "placed": False}  # of the functions that presence calls
_SOURCE = """
def enter(who):
    global placed
    inside[who] = None
    if not placed:
        {enter}
        placed = True

def leave(who):
    global placed
    inside.pop(who, None)
    if not inside:
        {leave}
        placed = False
"""
_has_gil = getattr(sys, "_is_gil_enabled", lambda: True)


def _watch_presence(*gone: _Place) -> None:
    """Make the functions that put the patches in place and take them out, after one has come or gone."""
    places = [place for patch in _patches if patch.inside for place in patch._places]
    lines: dict[str, list[str]] = {"enter": ["pass"], "leave": ["pass"]}
    for i, place in enumerate(places):
        is_module = isinstance(place.holder, ModuleType)
        _names[f"holder_{i}"] = vars(place.holder) if is_module else place.holder
        _names.update({f"new_{i}": place.new, f"kept_{i}": place.kept})
        there = f"holder_{i}[{place.name!r}]" if is_module else f"holder_{i}.{place.name}"
        lines["enter"].append(f"{there} = new_{i}")
        lines["leave"].append(f"{there} = kept_{i}")
    exec(_SOURCE.format(**{name: "; ".join(parts) for name, parts in lines.items()}), _names)
    if _has_gil():
        presence.enter, presence.leave = _names["enter"], _names["leave"]
    if _names["inside"] or not _has_gil():
        for place in places:
            setattr(place.holder, place.name, place.new)
        _names["placed"] = True
    for place in gone:
        setattr(place.holder, place.name, place.kept)
