"""Streams and pinned memory: both are matters of the physical tensor, whose memory all samples lie in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vmap_core.extend import BatchedTensor, Level, RulePack, may_return_self
from vmap_core.extend import named_aten as aten

pack = RulePack("cuda.streams")


@pack.logical(aten.record_stream.default)
def record_stream(info: Level, x: Any, s: Any) -> None:
    """(*): the memory is in use on a stream. Said once, for all samples."""
    value = x._value if type(x) is BatchedTensor and x._level is info else x
    value.record_stream(s)


@pack.rule(aten.is_pinned.default)
def is_pinned(info: Level, in_dims: Any, x: Tensor, device: Any = None) -> tuple[bool, None]:
    """(*) -> whether its memory is page-locked."""
    return x.is_pinned() if device is None else x.is_pinned(device), None


@pack.rule(aten.pin_memory.default)
@may_return_self
def pin_memory(info: Level, in_dims: Any, x: Tensor, device: Any = None) -> tuple[Tensor, Any]:
    """(*) -> (*) in page-locked memory; the same tensor if it is there already."""
    return x.pin_memory() if device is None else x.pin_memory(device), in_dims[0]


@pack.rule(aten._pin_memory.default)
def copied_to_pinned(info: Level, in_dims: Any, x: Tensor, device: Any = None) -> tuple[Tensor, Any]:
    """(*) -> (*), a copy."""
    return aten._pin_memory.default(x, device), in_dims[0]
