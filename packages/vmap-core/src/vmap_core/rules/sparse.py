"""Sparse tensors made inside a mapped function: one COO tensor of all samples, the sample its first index.

So element-wise operations and conversions are PyTorch's own on a tensor of shape (B, *size). A product is one of a block-diagonal
matrix, which has a derivative for both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import DataDependentError, UnsupportedError, user_location
from ..levels.args import unwrap, wrap
from ..levels.read import every_sample
from ..rulekit.dims import ensure_bdim, wrap_dim
from ..rulekit.rule import RulePack
from ..torch_compat.bindings import emitter
from ..torch_compat.operators import named_aten as aten

pack = RulePack("core.sparse")


@pack.logical(torch.sparse_coo_tensor)
def sparse_coo_tensor(info, indices, values, size=None, **options):
    """(d, n), (n, *) -> sparse (*size); without a size, the smallest that holds the indices of all samples."""
    (indices, values), (i_bdim, v_bdim), batched = unwrap(info, (indices, values))
    given = () if size is None else (size,)
    if not batched:
        return wrap(info, emitter(torch.sparse_coo_tensor)(indices, values, *given, **options), None)
    b = info.batch_size
    indices = ensure_bdim(torch.as_tensor(indices), i_bdim, b)
    values = ensure_bdim(torch.as_tensor(values), v_bdim, b)
    if size is None:
        ends = every_sample(indices.amax(2) + 1)
        if (ends != ends[:1]).any():
            raise DataDependentError(
                f"vmap: torch.sparse_coo_tensor at {user_location()} has no size, and the largest indices differ from sample to "
                f"sample, so the results would differ in size. Instead: pass the size."
            )
        size = (*ends[0].tolist(), *values.shape[2:])
    sample = torch.arange(b, device=indices.device)[:, None, None].expand(b, 1, indices.shape[2])
    at = torch.cat([sample, indices], 1).movedim(1, 0).flatten(1)
    return wrap(info, torch.sparse_coo_tensor(at, values.flatten(0, 1), (b, *size), **options), 0)


@pack.rule(aten.sparse_dim.default)
def sparse_dim(info, in_dims, x):
    """How many dims have an index."""
    return x.sparse_dim() - 1, None


@pack.rule(aten.dense_dim.default)
def dense_dim(info, in_dims, x):
    """How many dims are dense."""
    return x.dense_dim(), None


@pack.rule(aten.coalesce.default, aten._coalesce.default)
def coalesce(info, in_dims, x):
    """Sparse (*) -> the same, its indices in order and each there once."""
    return x.coalesce(), in_dims[0]


@pack.rule(aten.values.default)
def values(info, in_dims, x):
    """Sparse (*) -> (n, *), where all samples have as many."""
    n = _count(info, x)
    return torch.unflatten(x.values(), 0, (info.batch_size, n)), 0


@pack.rule(aten.indices.default)
def indices(info, in_dims, x):
    """Sparse (*) -> (d, n), where all samples have as many."""
    n = _count(info, x)
    return torch.unflatten(x.indices()[1:], 1, (info.batch_size, n)), 1


def _count(info: Any, x: Any) -> int:
    """Return how many elements each sample has of a coalesced tensor.

    Raises:
        DataDependentError: samples differ.
    """
    owners = every_sample(x.indices()[0])
    counts = torch.cat([row.bincount(minlength=info.batch_size) for row in owners.reshape(-1, owners.shape[-1])])
    if (counts != counts[:1]).any():
        raise DataDependentError(
            f"vmap: values() or indices() at {user_location()} of a sparse tensor whose samples have {counts.min()} to "
            f"{counts.max()} elements: the results would differ in size. Instead: to_dense()."
        )
    return int(counts[0]) if counts.numel() else 0


@pack.rule(aten._sparse_sum.default, aten._sparse_sum.dtype)
def sparse_sum(info, in_dims, x, *, dtype=None):
    """Sparse (*) -> ()."""
    return _summed(x, range(1, x.ndim), dtype), 0


@pack.rule(aten._sparse_sum.dim, aten._sparse_sum.dim_dtype)
def sparse_sum_dim(info, in_dims, x, dim, *, dtype=None):
    """Sparse (*) -> (*) without the dims; dense where no index is left."""
    dims = [dim] if isinstance(dim, int) else dim
    return _summed(x, [wrap_dim(d, x.ndim - 1) + 1 for d in dims], dtype), 0


def _summed(x: Any, dims: Sequence[int], dtype: Any) -> Any:
    options = {} if dtype is None else {"dtype": dtype}
    out = torch.sparse.sum(x, list(dims), **options)
    return out.to_dense() if set(range(1, x.sparse_dim())) <= set(dims) else out


@pack.rule(aten._sparse_mm.default)
def sparse_mm(info, in_dims, a, b):
    """Sparse (n, k), (k, m) -> (n, m)."""
    return product(info, in_dims, a, b)


def product(info: Any, in_dims: Any, a: Any, b: Any) -> Any:
    """(n, k), (k, m) -> (n, m), one of them sparse; the dense one may be a vector."""
    (a_bdim, b_bdim), n = in_dims, info.batch_size
    if b.layout is torch.sparse_coo and a.layout is torch.strided:
        b = b.transpose(-1, -2)
        if a.ndim - (a_bdim is not None) == 1:
            return product(info, (b_bdim, a_bdim), b, a)
        a, a_bdim = (a.mT, None) if a_bdim is None else (a.movedim(a_bdim, 0).mT, 0)
        out, bdim = product(info, (b_bdim, a_bdim), b, a)
        return out.movedim(bdim, 0).mT, 0
    rank = b.ndim - (b_bdim is not None)
    is_matrix = a.layout is torch.sparse_coo and a.sparse_dim() == a.ndim == 2 + (a_bdim is not None)
    if not is_matrix or b.layout is not torch.strided or rank not in (1, 2):
        raise UnsupportedError(
            f"vmap: a product of {a.layout} and {b.layout} tensors, at {user_location()}. Instead: make one of them dense "
            f"(to_dense())."
        )
    shape = a.shape[-2:]
    if a_bdim is None:  # the columns of all samples side by side
        b = b.movedim(b_bdim, -1)
        out = torch.sparse.mm(a, b.flatten(1))
        return torch.unflatten(out, 1, b.shape[1:]), rank
    a = a.coalesce()
    sample, row, column = a.indices()
    rows, columns = sample * shape[0] + row, (column if b_bdim is None else sample * shape[1] + column)
    b = b if b_bdim is None else b.movedim(b_bdim, 0).flatten(0, 1)
    blocks = torch.sparse_coo_tensor(
        torch.stack([rows, columns]), a.values(), (n * shape[0], b.shape[0]), is_coalesced=True, check_invariants=False
    )
    out = torch.sparse.mm(blocks, b[:, None] if rank == 1 else b)
    out = torch.unflatten(out, 0, (n, shape[0]))
    return (out[..., 0] if rank == 1 else out), 0
