"""Operators that look at values: they answer where all samples agree on one tensor, and refuse where they do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._plans import any_batched
from .._read import item, value
from .._registry import RuleFunction, RulePack
from .._tensor import BatchedTensor

aten = torch.ops.aten
pack = RulePack("core.read")


def _number(operation: str) -> RuleFunction:
    def read(info: Any, x: Any) -> Any:
        return item(x, operation) if type(x) is BatchedTensor and x._level is info else x.item()

    return read


_key: Any
for _key in (Tensor.item, aten.item.default, aten._local_scalar_dense.default):
    pack.logical(_key)(_number("item()"))
for _key in (torch.is_nonzero, Tensor.is_nonzero, aten.is_nonzero.default):
    pack.logical(_key)(_number("bool()"))


def _compare(op: Any) -> RuleFunction:
    """Make the rule of a comparison that gives one Python bool."""

    def compare(info: Any, x: Any, y: Any, *args: Any, **kwargs: Any) -> bool:
        both = [a for a in (x, y) if type(a) is BatchedTensor and a._level is info]
        if any_batched(info, (x, y), {}):
            value(next(a for a in both if a._bdim is not None), "bool()")
        x, y = (a._value if any(a is b for b in both) else a for a in (x, y))
        return op(x, y, *args, **kwargs)

    return compare


for _op in (torch.equal, torch.allclose):
    for _key in (_op, getattr(Tensor, _op.__name__), getattr(aten, _op.__name__).default):
        pack.logical(_key)(_compare(_op))
