"""Properties of tensors that have no rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..levels.args import wrap
from ..levels.level import Level
from ..levels.read import unsupported
from ..levels.tensor import BatchedTensor
from .plan import Run


def property_run(func: Callable[..., Any]) -> Run:
    """Make what runs a property of Tensor without a rule: read or set on the physical tensor."""
    name, writes = func.__self__.__name__, func.__name__ == "__set__"  # type: ignore[attr-defined]

    def get(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if type(x) is not BatchedTensor or x._level is not level:
            return getattr(x, name)
        out = getattr(x._value, name)
        return wrap(level, out, x._bdim) if isinstance(out, Tensor) else out

    def set_(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, new = args
        if type(x) is BatchedTensor and x._level is level:
            if isinstance(new, Tensor):
                raise unsupported(x, f"assignment to .{name}", "use an in-place operation, or a new name")
            return setattr(x._value, name, new)
        if type(new) is BatchedTensor:
            raise unsupported(new, f"assignment to .{name} of a tensor from outside", "assign outside the function")
        return setattr(x, name, new)

    return set_ if writes else get
