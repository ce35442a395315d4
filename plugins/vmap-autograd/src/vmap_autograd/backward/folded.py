"""Pooling, padding, resampling: operators on images (N, C, *), into whose N the mapped dim is folded."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Level, RulePack, ensure_bdim, logical_rank
from vmap_core.extend import named_aten as aten

pack = RulePack("autograd.backward.folded")


def of_images(op: Any, spatial: int, shape_only: bool = False) -> Any:
    """Make the rule of a backward operator ``(grad, self, ...)`` on images.

    Args:
        op: takes tensors (N, C, *) with ``spatial`` more dims, or (C, *) without N.
        spatial: number of dims after C.
        shape_only: of ``self`` only the shape counts, so an unbatched one needs no copies.
    """

    def of_images(info: Level, in_dims: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        size = info.batch_size
        with_n = logical_rank(args[0], in_dims[0]) == spatial + 2
        given = [
            ensure_bdim(a, d, size) if isinstance(a, Tensor) else a
            for a, d in zip(args, _all(in_dims, args), strict=True)
        ]
        outputs = len(op._schema.returns)
        if not given[1].numel():
            empty = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in given[1 : 1 + outputs])
            return (empty, 0) if outputs > 1 else (empty[0], 0)
        n = given[1].shape[1]
        if with_n:
            given = [_flat(a, shape_only and i == 1) if isinstance(a, Tensor) else a for i, a in enumerate(given)]
        else:
            given = [a.contiguous() if isinstance(a, Tensor) else a for a in given]
        out = op(*given, **kwargs)
        if not with_n:
            return out, 0
        if isinstance(out, Tensor):
            return out.unflatten(0, (size, n)), 0
        return tuple(o if o is None else o.unflatten(0, (size, n)) for o in out), 0

    return of_images


def _all(in_dims: Any, args: Any) -> list[Any]:
    return [in_dims[i] if i < len(in_dims) and not isinstance(in_dims[i], dict) else None for i in range(len(args))]


def _flat(x: Tensor, shape_only: bool) -> Tensor:
    """(B, N, *) -> (B * N, *); without its values, if only the shape counts: a shared tensor need not be copied."""
    if shape_only:
        return x.new_empty(1).expand(x.shape[0] * x.shape[1], *x.shape[2:])
    return x.flatten(0, 1).contiguous()  # some kernels read memory as if it were


IMAGES = {
    1: (aten.reflection_pad1d_backward, aten.replication_pad1d_backward),
    2: (
        aten._adaptive_avg_pool2d_backward,
        aten.adaptive_max_pool2d_backward,
        aten.avg_pool2d_backward,
        aten.fractional_max_pool2d_backward,
        aten.grid_sampler_2d_backward,
        aten.max_pool2d_with_indices_backward,
        aten.reflection_pad2d_backward,
        aten.replication_pad2d_backward,
    ),
    3: (
        aten._adaptive_avg_pool3d_backward,
        aten.adaptive_max_pool3d_backward,
        aten.avg_pool3d_backward,
        aten.fractional_max_pool3d_backward,
        aten.grid_sampler_3d_backward,
        aten.max_pool3d_with_indices_backward,
        aten.reflection_pad3d_backward,
        aten.replication_pad3d_backward,
    ),
}
for _spatial, _packets in IMAGES.items():
    for _packet in _packets:
        _name = _packet.__name__
        pack.family(
            partial(of_images, spatial=_spatial, shape_only="avg_pool" in _name or "_pad" in _name), _packet.default
        )


def of_size(op: Any) -> Any:
    """Make the rule of a backward operator ``(grad, output size, input size, ...)``: the sizes name N too."""

    def of_size(info: Level, in_dims: Any, grad: Any, output_size: Any, input_size: Any, *rest: Any) -> tuple[Any, int]:
        """(N, C, *) -> (N, C, *)."""
        grad = ensure_bdim(grad, in_dims[0], info.batch_size)
        n, *shape = input_size
        out = op(grad.flatten(0, 1), output_size, [grad.shape[0] * n, *shape], *rest)
        return out.reshape(grad.shape[0], n, *out.shape[1:]), 0

    return of_size


RESIZES = (
    aten._upsample_bicubic2d_aa_backward,
    aten._upsample_bilinear2d_aa_backward,
    aten._upsample_lanczos2d_aa_backward,
    aten._upsample_nearest_exact1d_backward,
    aten._upsample_nearest_exact2d_backward,
    aten._upsample_nearest_exact3d_backward,
    aten.upsample_bicubic2d_backward,
    aten.upsample_bilinear2d_backward,
    aten.upsample_linear1d_backward,
    aten.upsample_nearest1d_backward,
    aten.upsample_nearest2d_backward,
    aten.upsample_nearest3d_backward,
    aten.upsample_trilinear3d_backward,
)
for _packet in RESIZES:
    pack.family(of_size, _packet.default)
