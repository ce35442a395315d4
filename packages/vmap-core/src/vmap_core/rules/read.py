"""Operators that look at values: they answer where all samples agree on one tensor, and refuse where they do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._errors import DataDependentError, user_location
from .._plans import any_batched
from .._read import every_sample, item, value
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


def _truth(name: str, reduce: Any) -> RuleFunction:
    """Make the rule of a condition that is about to be read, as ``torch.distributions`` checks its arguments.

    (*) -> (). The answer is one for all samples, or an error: nobody asks who does not go on to read it.
    """

    def truth(info: Any, in_dims: Any, x: Any) -> Any:
        rows = every_sample(reduce(x.movedim(in_dims[0], 0).flatten(1), 1) if x.ndim > 1 else x)
        true = int(rows.sum())
        if 0 < true < rows.numel():
            raise DataDependentError(
                f"vmap: torch.{name} gives True for {true} of {rows.numel()} samples, at {user_location()}: a condition "
                f"that is checked, such as torch.distributions checks its arguments by, must hold for all samples. "
                f"Instead: make it hold, or leave the check out (validate_args=False)."
            )
        return torch.full((), true > 0 or not rows.numel(), dtype=torch.bool, device=x.device), None

    return truth


pack.rule(aten._is_all_true.default)(_truth("_is_all_true", torch.all))
pack.rule(aten._is_any_true.default)(_truth("_is_any_true", torch.any))
