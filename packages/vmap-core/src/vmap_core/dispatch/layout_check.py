"""The layout invariant, checked after each operation (``VMAP_CHECK=1``): see Note [The layout invariant] in `levels.layout`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import RuleError, function_name, user_location
from ..levels.containers import leaves
from ..levels.layout import is_outermost, same_storage
from ..levels.level import Level
from ..levels.tensor import BatchedTensor
from .plan import Plan, Run


def layout_checked(plan: Plan, func: Any) -> Run:
    """Return what runs the calls of a plan, and raises RuleError where a result lies in memory as no sample's would."""

    def run(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = plan.run(level, args, kwargs)
        given = list(_batched(level, (args, kwargs)))
        made = [x for x in _batched(level, out) if not any(x is a for a in given)]
        for x in made:
            value, bdim = x._value, x._bdim
            if x._rank not in (0, value.ndim):
                _refuse(level, func, plan, f"a tensor of {value.ndim} dims that is said to have {x._rank}")
            if bdim == 0 and not is_outermost(value, 0):
                _refuse(level, func, plan, f"a result with batch dim 0 and strides {value.stride()}")
            if bdim and x._origin is None and any(same_storage(value, a._value) for a in given):
                _refuse(level, func, plan, f"a view with batch dim {bdim}, for something new")
        return out

    return run


def _batched(level: Level, x: Any) -> Iterator[BatchedTensor]:
    """Iterate over the tensors that are batched at a level, and at no other."""
    for a in leaves(x):
        if type(a) is BatchedTensor and a._level is level and a._bdim is not None and type(a._value) is Tensor:
            if a._value.layout is torch.strided and a._value.numel():
                yield a


def _refuse(level: Level, func: Any, plan: Plan, what: str) -> None:
    rule = plan.served.rule
    whose = rule.place if rule is not None else plan.served.how
    raise RuleError(
        f"vmap: {function_name(func)} (by {whose}), at {user_location()}, in vmap of {level.name!r}, gave {what}. See Note [The "
        f"layout invariant] in vmap_core.levels.layout."
    )
