"""Operators said in other operators, which have rules; each equals PyTorch's kernel up to rounding."""

from __future__ import annotations

import torch

from ..rulekit.dims import ensure_bdim
from ..rulekit.rule import RulePack
from ..torch_compat.operators import named_aten as aten
from .view import as_strided

pack = RulePack("core.composite")


@pack.composite(aten.unfold_copy.default)
def unfold_copy(x, dimension, size, step):
    """(*, n, *) -> (*, windows, *, size), as a copy."""
    return x.unfold(dimension, size, step).clone(memory_format=torch.contiguous_format)


@pack.composite(aten.slice_copy.Tensor)
def slice_copy(x, dim=0, start=None, end=None, step=1):
    """(*, n, *) -> (*, m, *), as a copy."""
    return aten.slice.Tensor(x, dim, start, end, step).clone(memory_format=torch.contiguous_format)


@pack.composite(aten.select_copy.int)
def select_copy(x, dim, index):
    """(*, n, *) -> (*, *), as a copy."""
    return x.select(dim, index).clone(memory_format=torch.contiguous_format)


@pack.composite(aten.view_copy.default)
def view_copy(x, size):
    """(*) -> (*size), copied, whatever the layout."""
    return x.reshape(size).clone(memory_format=torch.contiguous_format)


@pack.composite(aten.as_strided_copy.default)
def as_strided_copy(x, size, stride, storage_offset=None):
    """(*) -> (*size), as a copy."""
    return torch.as_strided(x, size, stride, storage_offset).clone(memory_format=torch.contiguous_format)


@pack.rule(aten.as_strided_scatter.default)
def as_strided_scatter(info, in_dims, x, src, size, stride, storage_offset=None):
    """(*), (*size) -> (*) with src written to a strided view of it."""
    x = ensure_bdim(x, in_dims[0], info.batch_size).contiguous()
    src = ensure_bdim(src, in_dims[1], info.batch_size)
    places = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    places, _ = as_strided(info, (0,), places, size, stride, storage_offset)
    return x.reshape(-1).scatter(0, places.reshape(-1), src.reshape(-1)).reshape(x.shape), 0


@pack.composite(aten.block_diag.default)
def block_diag(tensors):
    """[(n_i, m_i), ...] -> (sum of n_i, sum of m_i)."""
    blocks = [torch.atleast_2d(t) for t in tensors]
    for i, t in enumerate(tensors):
        if t.dim() > 2:
            raise RuntimeError(
                f"torch.block_diag: Input tensors must have 2 or fewer dimensions. Input {i} has {t.dim()} dimensions"
            )
    width = sum(b.shape[1] for b in blocks)
    dtype = blocks[0].dtype
    for b in blocks[1:]:
        dtype = torch.promote_types(dtype, b.dtype)
    rows, left = [], 0
    for b in blocks:
        rows.append(torch.constant_pad_nd(b.to(dtype), [left, width - left - b.shape[1]]))
        left += b.shape[1]
    return torch.cat(rows)


@pack.composite(aten._pdist_forward.default)
def pdist(x, p=2.0):
    """(n, d) -> (n * (n - 1) / 2): distances of all pairs of rows."""
    i, j = torch.triu_indices(x.shape[0], x.shape[0], 1, device=x.device)
    return torch.linalg.vector_norm(x[i] - x[j], p, -1)


@pack.composite(aten.renorm.default)
def renorm(x, p, dim, maxnorm):
    """(*, n, *) -> (*, n, *), each slice of ``dim`` scaled down to a norm of ``maxnorm``."""
    if x.dim() < 2:
        raise RuntimeError(f"renorm: input needs at least 2 dimensions, got {x.dim()} dimensions")
    dims = [d for d in range(x.dim()) if d != dim % x.dim()]
    norm = torch.linalg.vector_norm(x, p, dims, keepdim=True)
    return torch.where(norm > maxnorm, x * (maxnorm / (norm + 1e-7)), x)
