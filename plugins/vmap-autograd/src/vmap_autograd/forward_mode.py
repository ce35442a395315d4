"""Forward mode: dual tensors (`torch.autograd.forward_ad`) made inside a mapped function.

As in reverse mode, what is dual is the physical tensor: PyTorch carries the tangents along, for all samples at once.
"""

from __future__ import annotations

from typing import Any

import torch

from vmap_core.extend import Level, RulePack, ensure_bdim, pointwise
from vmap_core.extend import named_aten as aten

from . import _torch

pack = RulePack("autograd.forward_mode")


@pack.rule(aten._make_dual.default)
def make_dual(info: Level, in_dims: Any, primal: Any, tangent: Any, level: int) -> tuple[Any, Any]:
    """(*), (*) -> (*). A batched tangent of a shared primal makes the primal every sample's own."""
    bdim = in_dims[0]
    if bdim is None:
        primal, bdim = ensure_bdim(primal, None, info.batch_size), 0
    if in_dims[1] != bdim:
        tangent = ensure_bdim(tangent, in_dims[1], info.batch_size).movedim(0, bdim)
    if info.batch_size > 1 and primal.stride(bdim) == 0:
        primal = primal.clone(memory_format=torch.contiguous_format)  # PyTorch gives a tangent its primal's strides
    return _torch.make_dual(primal, tangent, level=level), bdim


@pack.rule(aten._unpack_dual.default)
def unpack_dual(info: Level, in_dims: Any, dual: Any, level: int) -> tuple[Any, Any]:
    """(*) -> primal (*), tangent (*) or None."""
    primal, tangent = _torch.unpack_dual(dual, level=level)
    return (primal, tangent), (in_dims[0], None if tangent is None else in_dims[0])


@pack.rule(aten._fw_primal.default)
def fw_primal(info: Level, in_dims: Any, dual: Any, level: int) -> tuple[Any, Any]:
    """(*) -> (*): the tensor without its tangent."""
    return aten._fw_primal.default(dual, level), in_dims[0]


# What PyTorch does to a tangent when it sets it: here come batched tangents of an unbatched primal.


@pack.rule(aten._new_zeros_with_same_feature_meta.default)
def new_zeros_with_same_feature_meta(
    info: Level, in_dims: Any, x: Any, other: Any, *, self_num_batch_dims: int = 0
) -> tuple[Any, Any]:
    """(*b, *), (*) -> zeros (*b, *) with the memory layout of ``other``."""
    if in_dims[0] is None:
        raise NotImplementedError("a shared tangent of a batched primal")
    x = x.movedim(in_dims[0], 0)
    if in_dims[1] is not None:
        other = other.select(in_dims[1], 0) if other.shape[in_dims[1]] else other.new_empty(x.shape[1:])
    return aten._new_zeros_with_same_feature_meta.default(x, other, self_num_batch_dims=self_num_batch_dims + 1), 0


# With a zero tangent PyTorch asks its Python implementation, on meta tensors, for the shape of the result.
for _name in ("add", "sub", "mul", "div"):
    pack.add(getattr(torch.ops.prims, _name).default, pointwise(getattr(aten, _name).Tensor))
