"""torch.compile around code that calls vmap: a graph break. torch.compile inside a mapped function: it runs as it is."""

from __future__ import annotations

import functools
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from ..levels.stack import current_levels

_NAME = "torch._dynamo.eval_frame"


def run_eagerly_inside() -> None:
    """Let compiled functions run as they are inside mapped functions, where the compiler knows none of the tensors.

    The compiler is not imported for it: it is seen to when something else imports it.
    """
    if _NAME in sys.modules:
        _patch(sys.modules[_NAME])
    elif not any(type(finder) is _Watch for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _patch(module: ModuleType) -> None:
    native = module._callback_from_stance  # asked on every call of a compiled function
    count_frames = getattr(module, "set_fullgraph_compiled_frame_count", lambda count: -1)
    if hasattr(native, "_vmap_native"):
        return

    @functools.wraps(native)
    def callback(given: Any) -> Any:
        if not current_levels():
            return native(given)
        if count_frames(-1) != -1:  # fullgraph=True counts what it compiles, and objects to nothing
            count_frames(1)
        return None

    callback._vmap_native = native  # type: ignore[attr-defined]
    module._callback_from_stance = callback  # type: ignore[attr-defined]


class _Watch(MetaPathFinder):
    """Waits for the compiler to be imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Find the one module, to be patched as soon as it has run."""
        if name != _NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _patch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
