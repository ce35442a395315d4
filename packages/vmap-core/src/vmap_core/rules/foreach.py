"""``torch._foreach_*``, operations on lists of tensors: one on the lists of physical tensors, or one for each element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..levels.args import unwrap
from ..levels.ownership import promote
from ..levels.tensor import make_batched
from ..rulekit.rule import Rule, RulePack
from ..torch_compat.operators import named_aten as aten
from ..torch_compat.operators import overload_names

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


_NOT_ELEMENTWISE = ("max", "mm", "norm", "powsum")


def _on_lists(op: Any) -> Rule:
    """Make the rule: one call on lists of physical tensors where that means the same, else one for each element."""
    name = op._schema.name.removeprefix("aten::_foreach_")
    body = _for_each(op, _element(name))
    lists = [i for i, a in enumerate(op._schema.arguments) if str(a.type) == "List[Tensor]"]

    def on_lists(info: Any, *args: Any, **kwargs: Any) -> Any:
        values, dims, _ = unwrap(info, args)
        lengths = {len(args[i]) for i in lists}
        columns = [[(values[i][k], dims[i][k] if dims[i] else None) for i in lists] for k in range(min(lengths))]
        tensors = [a for i, a in enumerate((*args, *kwargs.values())) if i not in lists and isinstance(a, Tensor)]
        if name in _NOT_ELEMENTWISE or tensors or len(lengths) > 1 or not columns or not all(map(_alike, columns)):
            with info.pushed():
                return body(*args, **kwargs)
        if not op._schema.is_mutable:
            out = op(*values, **kwargs)
            return tuple(make_batched(o, column[0][1], info) for o, column in zip(out, columns, strict=True))
        for target in args[0]:
            promote(info, target, op._schema.name)
        op([target._value for target in args[0]], *values[1:], **kwargs)
        return args[0]

    return Rule(on_lists, "logical")


def _alike(column: Any) -> bool:
    """Tell whether one operation on physical tensors is that of the samples, of which autograd wants no record."""
    first, bdim = column[0]
    if bdim is None or any(d != bdim or (x.ndim, x.dtype) != (first.ndim, first.dtype) for x, d in column):
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x, _ in column))


for _name in overload_names("aten::_foreach_"):
    _packet, _, _overload = _name.partition(".")
    if hasattr(torch, _packet) and not _overload.endswith("out") and _name not in _READS:
        pack.family(_on_lists, getattr(getattr(aten, _packet), _overload or "default"))
