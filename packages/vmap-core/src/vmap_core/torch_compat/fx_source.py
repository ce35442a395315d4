"""The source text that fx keeps of the code it makes, for tracebacks."""

from __future__ import annotations

import linecache
import weakref

from torch.fx import GraphModule
from torch.fx.graph_module import _loader


def drop_source_with(module: GraphModule) -> GraphModule:
    """Return a module whose text goes when it does; fx would keep it for good."""
    name = type(module).forward.__code__.co_filename
    weakref.finalize(module, _drop, name).atexit = False
    return module


def _drop(name: str) -> None:
    linecache.cache.pop(name, None)
    vars(_loader)["eval_cache"].pop(name, None)
