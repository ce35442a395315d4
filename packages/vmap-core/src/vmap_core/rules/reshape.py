"""Reshapes: the elements of a sample in order, under another shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..rulekit.by_shape import by_shape
from ..rulekit.dims import to_front, wrap_dim
from ..rulekit.rule import Rule, RuleFunction, RulePack
from ..torch_compat.operators import named_aten as aten
from .view import logical_shape

pack = RulePack("core.reshape")


def infer_size(shape: Sequence[int], numel: int) -> list[int]:
    """Return ``shape`` with its -1 worked out, as PyTorch does for a tensor of ``numel`` elements."""
    shape = list(shape)
    holes = [i for i, n in enumerate(shape) if n == -1]
    if len(holes) > 1:
        raise RuntimeError("only one dimension can be inferred")
    known = 1
    for n in shape:
        if n < -1:
            raise RuntimeError(f"invalid shape dimension {n}")
        known *= n if n != -1 else 1
    if holes:
        if known == 0:
            raise RuntimeError(
                f"cannot reshape tensor of {numel} elements into shape {shape} because the unspecified dimension "
                f"size -1 can be any value and is ambiguous"
            )
        shape[holes[0]] = numel // known
        known *= shape[holes[0]]
    if known != numel:
        raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {numel}")
    return shape


def numel(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape."""
    total = 1
    for n in shape:
        total *= n
    return total


def _reshaper(name: str) -> RuleFunction:
    emit = getattr(torch.Tensor, name)

    def reshape(info: Any, in_dims: Any, x: Any, shape: Sequence[int]) -> Any:
        """(*) -> (*shape). A view if the sample's would be one."""
        bdim = in_dims[0]
        x = to_front(x, bdim)
        if type(x) is torch.Tensor:
            try:
                return emit(x, (x.shape[0], *shape)), 0
            except RuntimeError:
                pass  # or the sizes are to be told of as the sample's
        size = infer_size(shape, numel(logical_shape(x, 0)))
        return getattr(x, name)(x.shape[0], *size), 0

    return reshape


pack.add(aten.view.default, by_shape(_reshaper("view")))
pack.add(aten._unsafe_view.default, _reshaper("reshape"))
pack.add(aten.reshape.default, by_shape(_reshaper("reshape")))


def flatten(info, in_dims, x, start_dim=0, end_dim=-1):
    """(*) -> (*), the dims from start to end as one. A view if the sample's would be one; the same tensor for one dim."""
    rank = x.ndim - 1
    start, end = wrap_dim(start_dim, rank), wrap_dim(end_dim, rank)
    if start > end:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    if rank and start == end:
        return x, in_dims[0]
    x = to_front(x, in_dims[0])
    return (x.flatten(start + 1, end + 1) if rank else x.unsqueeze(1)), 0


pack.add(aten.flatten.using_ints, Rule(flatten, by_shape=flatten, may_return_self=True))


@pack.rule(aten._reshape_alias.default)
def _reshape_alias(info, in_dims, x, size, stride):
    """(*) -> (*size)."""
    return _reshaper("reshape")(info, in_dims, x, size)


@pack.logical(aten.view_as.default)
def view_as(info, x, other):
    """(*), (*shape) -> (*shape), as a view."""
    with info.pushed():
        return x.view(other.shape)


@pack.rule(aten.reshape_as.default)
def reshape_as(info, in_dims, x, other):
    """(*), (*shape) -> (*shape). A view if the sample's would be one."""
    shape = logical_shape(other, in_dims[1])
    return (x.reshape(shape), None) if in_dims[0] is None else _reshaper("reshape")(info, in_dims, x, shape)


@pack.logical(torch.Tensor.unflatten)
def unflatten(info, x, dim, sizes):
    """(*, n, *) -> (*, *sizes, *). Tensor.unflatten calls its base class, which only takes tensors of C++."""
    with info.pushed():
        return torch.unflatten(x, dim, sizes)


@pack.rule(aten.resize.default)
def resize(info, in_dims, x, size, *, memory_format=None):
    """(*) -> (*size), the first elements; those that are new are undefined."""
    if in_dims[0] is None:
        return aten.resize.default(x, size, memory_format=memory_format), None
    flat = to_front(x, in_dims[0]).flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    missing = numel(size) - flat.shape[1]
    if missing > 0:
        flat = torch.cat([flat, flat.new_empty(flat.shape[0], missing)], 1)
    return flat[:, : numel(size)].reshape(flat.shape[0], *size).clone(), 0
