"""Operators that look at values: they answer where all samples agree, and refuse where they do not (see `levels.read`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..levels.args import any_batched
from ..levels.read import item, truth
from ..levels.tensor import BatchedTensor
from ..rulekit.dims import to_front
from ..rulekit.rule import RuleFunction, RulePack
from ..torch_compat.operators import named_aten as aten

pack = RulePack("core.read")


def _is_batched(info: Any, x: Any) -> bool:
    return type(x) is BatchedTensor and x._level is info


def _item(info: Any, x: Any) -> Any:
    return item(x, "item()") if _is_batched(info, x) else x.item()


def _is_nonzero(info: Any, x: Any) -> bool:
    return truth(x) if _is_batched(info, x) else bool(x)


_key: Any
for _key in (Tensor.item, aten.item.default, aten._local_scalar_dense.default):
    pack.logical(_key)(_item)
for _key in (torch.is_nonzero, Tensor.is_nonzero, aten.is_nonzero.default):
    pack.logical(_key)(_is_nonzero)


def _compare(name: str) -> RuleFunction:
    """Make the rule of a comparison of all elements, which gives one Python bool."""

    def compare(info: Any, x: Any, y: Any, *args: Any, **kwargs: Any) -> bool:
        if not any_batched(info, (x, y), {}):
            x, y = (a._value if _is_batched(info, a) else a for a in (x, y))
            return getattr(torch, name)(x, y, *args, **kwargs)
        if name == "equal" and x.shape != y.shape:
            return False
        with info.pushed():
            same = torch.eq(x, y) if name == "equal" else torch.isclose(x, y, *args, **kwargs)
            return truth(same.all()) if info.batch_size else True

    return compare


for _name in ("equal", "allclose"):
    for _key in (getattr(torch, _name), getattr(Tensor, _name), getattr(aten, _name).default):
        pack.logical(_key)(_compare(_name))


def _condition(reduce: Any, empty: bool) -> RuleFunction:
    """Make the rule of a condition that is read next, as ``torch.distributions`` checks its arguments: (*) -> ()."""

    def condition(info: Any, in_dims: Any, x: Any) -> Any:
        if not info.batch_size:  # what is read next has an answer
            return torch.full((), empty, dtype=torch.bool, device=x.device), None
        return reduce(to_front(x, in_dims[0]).flatten(1), 1) if x.ndim > 1 else x, 0

    return condition


pack.rule(aten._is_all_true.default)(_condition(torch.all, True))
pack.rule(aten._is_any_true.default)(_condition(torch.any, False))
