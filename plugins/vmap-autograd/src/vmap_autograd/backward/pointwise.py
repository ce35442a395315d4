"""Backward operators that go element by element, but are not tagged so, or have a kernel that does not broadcast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Level, RulePack, ensure_bdim, pad_rank, pointwise
from vmap_core.extend import named_aten as aten

pack = RulePack("autograd.backward.pointwise")
pack.family(pointwise, aten.hardshrink_backward.default, aten.softshrink_backward.default)


@pack.rule(aten.gelu_backward.default)
def gelu_backward(info: Level, in_dims: Any, grad: Any, x: Any, *, approximate: str = "none") -> tuple[Tensor, int]:
    """(*), (*) -> (*). The kernel wants equal shapes, in equal layouts."""
    grad, x = (ensure_bdim(t, d, info.batch_size).contiguous() for t, d in zip((grad, x), in_dims[:2], strict=True))
    return aten.gelu_backward.default(grad, x, approximate=approximate), 0


@pack.composite(aten.glu_jvp.default)
def glu_jvp(glu: Any, x: Any, dx: Any, dim: int) -> Any:
    """(*, n, *), (*, 2n, *), (*, 2n, *) -> (*, n, *)."""
    gate = x.chunk(2, dim)[1].sigmoid()
    da, db = dx.chunk(2, dim)
    return da * gate + glu * (1 - gate) * db


@pack.composite(aten.glu_backward_jvp.default)
def glu_backward_jvp(grad_x: Any, grad_glu: Any, x: Any, dgrad_glu: Any, dx: Any, dim: int) -> Any:
    """(*, 2n, *), (*, n, *), (*, 2n, *), (*, n, *), (*, 2n, *) -> (*, 2n, *)."""
    (a, b), (da, db) = x.chunk(2, dim), dx.chunk(2, dim)
    gate = b.sigmoid()
    slope = gate * (1 - gate)
    first = dgrad_glu * gate + grad_glu * slope * db
    second = slope * (dgrad_glu * a + grad_glu * da + grad_glu * a * (1 - 2 * gate) * db)
    return torch.cat([first, second], dim)


@pack.rule(aten.masked_scatter_backward.default)
def masked_scatter_backward(info: Level, in_dims: Any, grad: Any, mask: Any, sizes: Any) -> tuple[Tensor, int]:
    """(*), (*), sizes -> (sizes): the elements under the mask, in their order, then zeros."""
    size = info.batch_size
    rank = max(grad.ndim - (in_dims[0] is not None), mask.ndim - (in_dims[1] is not None), 1)
    own = [pad_rank(ensure_bdim(t, d, size), 0, rank) for t, d in zip((grad, mask), in_dims[:2], strict=True)]
    grad, mask = (t.flatten(1) for t in torch.broadcast_tensors(*own))
    count = torch.Size(sizes).numel()
    place = torch.where(mask, mask.cumsum(1) - 1, count)  # one more place, for what the mask leaves out
    out = grad.new_zeros(size, count + 1).scatter(1, place.clamp(max=count), grad)
    return out[:, :count].reshape(size, *sizes), 0
