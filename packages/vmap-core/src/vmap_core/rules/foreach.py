"""``torch._foreach_*``, operations on lists of tensors: one ordinary operation for each element of the lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._registry import RulePack

aten = torch.ops.aten
pack = RulePack("core.foreach")


def _powsum(x: Tensor, ord: float = 2, dtype: torch.dtype | None = None) -> Tensor:
    return x.abs().pow(ord).sum(dtype=dtype)


# What an element's operation is, where it is not the function of torch of the same name with the same arguments.
_ELEMENT: dict[str, Callable[..., Any]] = {
    "addcdiv": lambda x, a, b, value=1: torch.addcdiv(x, a, b, value=value),
    "addcmul": lambda x, a, b, value=1: torch.addcmul(x, a, b, value=value),
    "copy": lambda x, source, non_blocking=False: source.to(x.dtype, copy=True).expand(x.shape),
    "max": torch.max,
    "maximum": lambda x, other: torch.maximum(x, other) if isinstance(other, Tensor) else torch.clamp_min(x, other),
    "minimum": lambda x, other: torch.minimum(x, other) if isinstance(other, Tensor) else torch.clamp_max(x, other),
    "norm": lambda x, ord=2, dtype=None: torch.linalg.vector_norm(x, ord, dtype=dtype),
    "powsum": _powsum,
    "zero": torch.zeros_like,
    "maximum_": lambda x, other: x.clamp_min_(other),
    "minimum_": lambda x, other: x.clamp_max_(other),
    "addcdiv_": lambda x, a, b, value=1: x.addcdiv_(a, b, value=value),
    "addcmul_": lambda x, a, b, value=1: x.addcmul_(a, b, value=value),
}

# These take the numbers of all elements in one tensor, and read them.
_READS = ("_foreach_addcdiv.Tensor", "_foreach_addcmul.Tensor", "_foreach_addcdiv_.Tensor", "_foreach_addcmul_.Tensor")


def _element(name: str) -> Callable[..., Any]:
    if name in _ELEMENT:
        return _ELEMENT[name]
    return (
        (lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)) if name.endswith("_") else getattr(torch, name)
    )


def _for_each(op: Any, element: Callable[..., Any]) -> Callable[..., Any]:
    lists = [i for i, a in enumerate(op._schema.arguments) if str(a.type).startswith("List")]

    def for_each(*args: Any, **kwargs: Any) -> Any:
        """[(*), ...] -> [(*), ...], or the same tensors, written to."""
        sizes = {len(args[i]) for i in lists}
        if len(sizes) > 1:
            raise RuntimeError(f"Tensor lists must have the same number of tensors, got {sorted(sizes)}")
        out = [element(*(a[k] if i in lists else a for i, a in enumerate(args)), **kwargs) for k in range(sizes.pop())]
        return out if op._schema.is_mutable else tuple(out)

    for_each.__name__ = op._schema.name.partition("::")[2]
    return for_each


for _packet in sorted(name for name in dir(torch) if name.startswith("_foreach_")):
    _name = _packet.removeprefix("_foreach_")
    for _overload in getattr(aten, _packet).overloads():
        _op = getattr(getattr(aten, _packet), _overload)
        if not _overload.endswith("out") and f"{_packet}.{_overload}" not in _READS:
            pack.composite(_op)(_for_each(_op, _element(_name)))
