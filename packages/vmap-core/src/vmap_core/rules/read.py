"""Operators that look at values: they answer where all samples agree on one tensor, and refuse where they do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._errors import DataDependentError, user_location
from .._plans import any_batched
from .._read import every_sample, item
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


def _agreed(name: str, rows: Any) -> bool:
    """Return the answer that all samples give.

    Args:
        name: the function that asks.
        rows: each sample's answer.

    Raises:
        DataDependentError: they disagree.
    """
    rows = every_sample(rows)
    true = int(rows.sum())
    if 0 < true < rows.numel():
        raise DataDependentError(
            f"vmap: torch.{name} gives True for {true} of {rows.numel()} samples, at {user_location()}; the function goes "
            f"on in one way for all of them, so they must agree. (torch.distributions checks its arguments like this, "
            f"unless told validate_args=False.) Instead: use torch.where(condition, a, b) to choose per sample."
        )
    return true > 0 or not rows.numel()


def _compare(name: str) -> RuleFunction:
    """Make the rule of a comparison of all elements, which gives one Python bool."""

    def compare(info: Any, x: Any, y: Any, *args: Any, **kwargs: Any) -> bool:
        if not any_batched(info, (x, y), {}):
            x, y = (a._value if type(a) is BatchedTensor and a._level is info else a for a in (x, y))
            return getattr(torch, name)(x, y, *args, **kwargs)
        if name == "equal" and x.shape != y.shape:
            return False
        with info.pushed():
            same = torch.eq(x, y) if name == "equal" else torch.isclose(x, y, *args, **kwargs)
            rows = same.all()
        return _agreed(name, rows)

    return compare


for _name in ("equal", "allclose"):
    for _key in (getattr(torch, _name), getattr(Tensor, _name), getattr(aten, _name).default):
        pack.logical(_key)(_compare(_name))


def _truth(name: str, reduce: Any) -> RuleFunction:
    """Make the rule of a condition that is about to be read, as ``torch.distributions`` checks its arguments.

    (*) -> (). The answer is one for all samples, or an error: nobody asks who does not go on to read it.
    """

    def truth(info: Any, in_dims: Any, x: Any) -> Any:
        rows = reduce(x.movedim(in_dims[0], 0).flatten(1), 1) if x.ndim > 1 else x
        return torch.full((), _agreed(name, rows), dtype=torch.bool, device=x.device), None

    return truth


pack.rule(aten._is_all_true.default)(_truth("_is_all_true", torch.all))
pack.rule(aten._is_any_true.default)(_truth("_is_any_true", torch.any))
