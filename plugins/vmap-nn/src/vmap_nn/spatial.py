"""Pooling, padding, resampling: operators on images (N, C, *), into whose N the mapped dim is folded."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from vmap_core.extend import RulePack, ensure_bdim, logical_rank, to_front
from vmap_core.extend import named_aten as aten

from ._torch import bindings

pack = RulePack("nn.spatial")


def fold(op: Any, *, spatial: int) -> Any:
    """Make the rule of an operator on images.

    Args:
        op: takes tensors (N, C, *) with ``spatial`` more dims, or (C, *) without N.
        spatial: number of dims after C.
    """

    # Python's binding takes one number for all spatial dims, the overload does not.
    emit = getattr(bindings, op._schema.name[6:], op)
    always = "upsample" in op._schema.name  # has an N

    def fold(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        rank = logical_rank(args[0], in_dims[0])
        if rank not in (spatial + 1, spatial + 2):
            raise RuntimeError(
                f"{op._schema.name[6:]}: Expected {spatial + 1}D (unbatched) or {spatial + 2}D (batched) input, but got a "
                f"{rank}D one."
            )
        folded = rank == spatial + 2
        if always and not folded:
            raise RuntimeError(f"It is expected input_size equals to {spatial + 2}, but got size {rank}")
        given: list[Any] = []
        for a, d in zip(args, in_dims, strict=False):
            if isinstance(a, Tensor):
                a = ensure_bdim(a, d, info.batch_size)
                a = a.flatten(0, 1) if folded else a
            given.append(a)
        out = emit(*given, **kwargs)
        if not folded:
            return out, 0
        n = args[0].shape[1 if in_dims[0] == 0 else 0]
        if isinstance(out, Tensor):
            return _unfold(out, info.batch_size, n), 0
        return tuple(_unfold(o, info.batch_size, n) for o in out), 0

    return fold


def _unfold(out: Tensor, batch_size: int, n: int) -> Tensor:
    """(B * N, *) -> (B, N, *)."""
    return out.reshape(batch_size, n, *out.shape[1:])


SPATIAL = {
    1: (
        aten._upsample_nearest_exact1d.default,
        aten.adaptive_avg_pool1d.default,
        aten.avg_pool1d.default,
        aten.col2im.default,
        aten.max_pool1d.default,
        aten.reflection_pad1d.default,
        aten.replication_pad1d.default,
        aten.upsample_linear1d.default,
        aten.upsample_nearest1d.default,
    ),
    2: (
        aten._adaptive_avg_pool2d.default,
        aten._upsample_bicubic2d_aa.default,
        aten._upsample_bilinear2d_aa.default,
        aten._upsample_nearest_exact2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.adaptive_max_pool2d.default,
        aten.avg_pool2d.default,
        aten.fractional_max_pool2d.default,
        aten.grid_sampler_2d.default,
        aten.im2col.default,
        aten.max_pool2d.default,
        aten.max_pool2d_with_indices.default,
        aten.max_unpool2d.default,
        aten.reflection_pad2d.default,
        aten.replication_pad2d.default,
        aten.upsample_bicubic2d.default,
        aten.upsample_bilinear2d.default,
        aten.upsample_nearest2d.default,
    ),
    3: (
        aten._adaptive_avg_pool3d.default,
        aten._upsample_nearest_exact3d.default,
        aten.adaptive_avg_pool3d.default,
        aten.adaptive_max_pool3d.default,
        aten.avg_pool3d.default,
        aten.fractional_max_pool3d.default,
        aten.grid_sampler_3d.default,
        aten.max_pool3d.default,
        aten.max_pool3d_with_indices.default,
        aten.max_unpool3d.default,
        aten.reflection_pad3d.default,
        aten.replication_pad3d.default,
        aten.upsample_nearest3d.default,
        aten.upsample_trilinear3d.default,
    ),
}
for _spatial, _ops in SPATIAL.items():
    for _op in _ops:
        pack.family(partial(fold, spatial=_spatial), _op)


def _in_front(op: Any) -> Any:
    """Make the rule of an operator on the last dims, with any number of dims before them."""

    def in_front(info: Any, in_dims: Any, x: Tensor, *args: Any) -> Any:
        x = to_front(x, in_dims[0])
        if info.batch_size == 0:  # the kernels return an empty input as it is
            return op(x.new_zeros((1, *x.shape[1:])), *args)[:0], 0
        return op(x, *args), 0

    return in_front


pack.family(_in_front, aten.pixel_shuffle.default, aten.pixel_unshuffle.default)


@pack.composite(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def channel_shuffle(x, groups):
    """(N, C, *) -> (N, C, *), the channels of all groups interleaved."""
    n, c, *rest = x.shape
    return x.reshape(n, groups, c // groups, *rest).transpose(1, 2).reshape(x.shape)
