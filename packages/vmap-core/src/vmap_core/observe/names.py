"""How users would write a function's name; the plain tensor inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from ..levels.tensor import BatchedTensor
from ..torch_compat.mode_stack import DisableTorchFunction
from ..torch_compat.operators import OpOverload


def name_of(func: Any) -> str:
    """Return how a user would write a function's name."""
    if isinstance(func, OpOverload):
        return str(func)
    owner = getattr(func, "__self__", None)
    if getattr(func, "__name__", "") in ("__get__", "__set__") and owner is not None:
        return f"torch.Tensor.{owner.__name__}" + (" =" if func.__name__ == "__set__" else "")
    try:
        name = resolve_name(func)
    except Exception:  # it looks attributes up
        name = None
    return name or getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or str(func)


def physical(x: Any) -> Any:
    """Return the plain tensor inside."""
    while type(x) is BatchedTensor:
        x = x._value
    return x


def kept(x: Any, level: Any) -> tuple[Tensor, int | None]:
    """Return a copy of a tensor without its graph, and its batch dim at a level."""
    bdim = x._bdim if type(x) is BatchedTensor and x._level is level else None
    with torch.no_grad(), DisableTorchFunction():
        return physical(x).detach().clone(), bdim
