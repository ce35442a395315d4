"""Joining, repeating and rearranging: results are new tensors."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import DataDependentError, user_location
from ..levels.read import every_sample
from ..rulekit.dims import ensure_bdim, physical_dim, physical_dims, to_front, wrap_dim
from ..rulekit.rule import Rule, RulePack
from ..torch_compat.operators import named_aten as aten
from .reshape import numel
from .view import logical_shape

pack = RulePack("core.join")


def _to_one_bdim(info: Any, tensors: Any, dims: Any) -> tuple[list[Any], int]:
    """Bring tensors of one rank to one batch dim; unbatched ones are expanded."""
    if len(set(dims)) == 1:
        return list(tensors), dims[0]
    return [ensure_bdim(x, d, info.batch_size) for x, d in zip(tensors, dims, strict=True)], 0


def cat(info, in_dims, tensors, dim=0):
    """[(*, n_i, *), ...] -> (*, sum of n_i, *)."""
    dims = in_dims[0]
    bdim, rank = dims[0], tensors[0].ndim - 1
    if bdim is not None and dims.count(bdim) == len(dims) and -rank <= dim < rank:
        d = dim if dim >= 0 else dim + rank
        try:
            return torch.cat(tensors, d + 1 if d >= bdim else d), bdim
        except RuntimeError:
            pass  # ranks differ, or it is told again in the sample's terms
    ranks = [x.ndim - (d is not None) for x, d in zip(tensors, dims, strict=True)]
    # cat skips tensors of shape (0,), whatever the rank of the others
    rank = max(ranks)
    kept = [i for i, x in enumerate(tensors) if ranks[i] == rank or logical_shape(x, dims[i]) != [0]]
    if rank == 0:
        raise RuntimeError("zero-dimensional tensor (at position 0) cannot be concatenated")
    if len(kept) < len(tensors):
        dtype = tensors[0].dtype
        for x in tensors[1:]:
            dtype = torch.promote_types(dtype, x.dtype)
        tensors = [tensors[i].to(dtype) for i in kept]
        dims = [dims[i] for i in kept]
    if all(d is None for d in dims):
        return torch.cat(tensors, dim), None
    xs, bdim = _to_one_bdim(info, tensors, dims)
    return torch.cat(xs, physical_dim(dim, rank, bdim)), bdim


pack.add(aten.cat.default, Rule(cat, joining=torch.cat))


@pack.rule(aten.stack.default)
def stack(info, in_dims, tensors, dim=0):
    """[(*), ...] -> (*, count, *). The dim counts on the result."""
    xs, bdim = _to_one_bdim(info, tensors, in_dims[0])
    if bdim == 0 and all(x.shape == xs[0].shape for x in xs):
        return torch.stack(xs, wrap_dim(dim, xs[0].ndim) + 1), 0
    shape = logical_shape(xs[0], bdim)
    for i, x in enumerate(xs):
        if logical_shape(x, bdim) != shape:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {shape} at entry 0 and "
                f"{logical_shape(x, bdim)} at entry {i}"
            )
    dim = wrap_dim(dim, xs[0].ndim)
    if dim <= bdim:
        return torch.stack(xs, dim), bdim + 1
    return torch.stack(xs, dim + 1), bdim


@pack.rule(aten.flip.default)
def flip(info, in_dims, x, dims):
    """(*) -> (*), reversed in some dims."""
    bdim, rank = in_dims[0], x.ndim - 1
    if not rank:
        for d in dims:
            wrap_dim(d, 0)
        return x.clone(), bdim
    return x.flip(physical_dims(list(dims), rank, bdim)), bdim


@pack.rule(aten.roll.default)
def roll(info, in_dims, x, shifts, dims=()):
    """(*) -> (*), rotated; without dims, over the flattened sample."""
    bdim, rank = in_dims[0], x.ndim - 1
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims and len(shifts) == 1:
        x = to_front(x, bdim)
        return x.flatten(1).roll(shifts[0], 1).reshape(x.shape) if rank else x.clone(), 0
    if not rank:
        torch.roll(torch.empty(()), shifts, dims)  # raises as PyTorch does
        return x.clone(), bdim
    if len(dims) != len(shifts):
        raise RuntimeError(f"shifts and dimensions must align. shifts: {len(shifts)}, dims:{len(dims)}")
    return x.roll(shifts, [physical_dim(d, rank, bdim) for d in dims]), bdim


@pack.rule(aten.rot90.default)
def rot90(info, in_dims, x, k=1, dims=(0, 1)):
    """(*) -> (*), rotated by k quarter turns in a plane."""
    bdim, rank = in_dims[0], x.ndim - 1
    return x.rot90(k, physical_dims(list(dims), rank, bdim)), bdim


@pack.rule(aten.repeat.default)
def repeat(info, in_dims, x, repeats):
    """(*) -> (*), tiled; ``repeats`` may be longer than the rank."""
    bdim, rank = in_dims[0], x.ndim - 1
    if len(repeats) == rank:
        return x.repeat(*repeats[:bdim], 1, *repeats[bdim:]), bdim
    if len(repeats) < rank:
        raise RuntimeError("Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor")
    x = to_front(x, bdim)
    x = x.reshape(x.shape[0], *(1,) * (len(repeats) - rank), *x.shape[1:])
    return x.repeat(1, *repeats), 0


@pack.rule(aten.tile.default)
def tile(info, in_dims, x, dims):
    """(*) -> (*), tiled; dims are padded with ones in front."""
    dims = [1] * (x.ndim - 1 - len(dims)) + list(dims)
    return repeat(info, in_dims, x, dims)


@pack.rule(aten.repeat_interleave.self_int)
def repeat_interleave(info, in_dims, x, repeats, dim=None, *, output_size=None):
    """(*, n, *) -> (*, n * repeats, *); without a dim, over the flattened sample."""
    bdim, rank = in_dims[0], x.ndim - 1
    if dim is None or not rank:
        if dim is not None:
            wrap_dim(dim, 0)
        x = to_front(x, bdim)
        return x.reshape(x.shape[0], numel(x.shape[1:])).repeat_interleave(repeats, 1), 0
    return x.repeat_interleave(repeats, physical_dim(dim, rank, bdim), output_size=output_size), bdim


@pack.rule(aten.repeat_interleave.self_Tensor)
def repeat_interleave_tensor(info, in_dims, x, repeats, dim=None, *, output_size=None):
    """(*, n, *), (n) -> (*, sum of repeats, *). Every sample's repeats must have one total."""
    x_bdim, r_bdim = in_dims[:2]
    size = logical_shape(x, x_bdim)
    rank = len(size)
    if dim is None:
        if x_bdim is not None:
            x = to_front(x, x_bdim)
            x, x_bdim = x.reshape(x.shape[0], numel(size)), 0
        else:
            x = x.reshape(-1)
        dim, rank, size = 0, 1, [numel(size)]
    dim = wrap_dim(dim, rank)
    if r_bdim is None:
        return x.repeat_interleave(repeats, physical_dim(dim, rank, x_bdim), output_size=output_size), x_bdim
    repeats = to_front(repeats, r_bdim)
    if repeats.ndim == 1 or repeats.shape[1] == 1:
        repeats = repeats.reshape(-1, 1).expand(-1, size[dim])
    if output_size is None:
        totals = every_sample(repeats.sum(-1))
        output_size = int(totals.max()) if totals.numel() else 0
        if totals.numel() and int(totals.min()) != output_size:
            raise DataDependentError(
                f"vmap: repeat_interleave gives results of different lengths ({int(totals.min())} to {output_size}) "
                f"for different samples, at {user_location()}. Instead: pad every sample's repeats to one total."
            )
    # position k of the result comes from the first element whose running total exceeds k
    ends = repeats.cumsum(1)
    k = torch.arange(output_size, device=repeats.device).expand(ends.shape[0], output_size).contiguous()
    index = torch.searchsorted(ends, k, right=True)
    shape = [1] * rank
    shape[dim] = output_size
    index = index.reshape(index.shape[0], *shape)
    x = ensure_bdim(x, x_bdim, info.batch_size)
    expanded = list(x.shape)
    expanded[dim + 1] = output_size
    return x.gather(dim + 1, index.expand(expanded)), 0


@pack.rule(aten.constant_pad_nd.default)
def constant_pad_nd(info, in_dims, x, pad, value=0):
    """(*) -> (*), padded in its last dims."""
    bdim = in_dims[0]
    if len(pad) // 2 > x.ndim - 1:
        raise RuntimeError(f"Length of pad should be no more than twice the number of dimensions of the input. "
                           f"Pad length is {len(pad)} while the input has {x.ndim - 1} dimensions.")  # fmt: skip
    if len(pad) // 2 > x.ndim - 1 - bdim:
        x, bdim = to_front(x, bdim), 0
    return aten.constant_pad_nd.default(x, pad, value), bdim


def _scatter_like(name: str) -> Any:
    """Make the rule of ``x`` with ``src`` written to one of its views."""
    view = {"select_scatter": aten.select.int, "slice_scatter": aten.slice.Tensor,
            "diagonal_scatter": aten.diagonal.default}[name]  # fmt: skip

    def view_scatter(x: Any, src: Any, *args: Any, **kwargs: Any) -> Any:
        out = x.clone()
        view(out, *args, **kwargs).copy_(src)
        return out

    view_scatter.__name__ = name
    return view_scatter


for _op in (aten.select_scatter.default, aten.slice_scatter.default, aten.diagonal_scatter.default):
    pack.composite(_op)(_scatter_like(_op._schema.name.partition("::")[2]))


pack.ask(
    aten.repeat_interleave.self_Tensor,
    aten.select_scatter.default,
    aten.slice_scatter.default,
    aten.diagonal_scatter.default,
)
