"""What is to be done once a module has been imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

_waiting: dict[str, list[Callable[[ModuleType], Any]]] = {}


def when_imported(name: str, action: Callable[[ModuleType], Any]) -> None:
    """Call a function with a module: now if it has been imported, else as soon as it has run."""
    if name in sys.modules:
        action(sys.modules[name])
        return
    _waiting.setdefault(name, []).append(action)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _Finder(MetaPathFinder):
    """Finds nothing itself: has the others find a module that is waited for, and watches it run."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Find a module that is waited for."""
        if name not in _waiting:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                break
        else:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            for action in _waiting.pop(name, ()):
                action(module)
            if not _waiting and self in sys.meta_path:
                sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_finder = _Finder()
