"""Bags of embeddings: the samples' bags lie one after the other, and so do the members' tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Level, RulePack, ensure_bdim, every_sample, loop, wrap_dim
from vmap_core.extend import named_aten as aten

pack = RulePack("nn.embedding_bag")


def _bags(op: Any) -> Any:
    """Make the rule of ``embedding_bag`` under one of its names; the public ones wrap a negative index of padding."""
    public = op._schema.name == "aten::embedding_bag"
    emit = aten.embedding_bag.padding_idx if public else op
    without = None if public else -1

    def bags(
        info: Level, in_dims: Any, table: Tensor, indices: Tensor, offsets: Tensor, scale_grad_by_freq: bool = False,
        mode: int = 0, sparse: bool = False, weights: Tensor | None = None, include_last_offset: bool = False,
        padding_idx: int | None = without,
    ) -> Any:  # fmt: skip
        """(v, d), (k), (bags) or (bags + 1), (k) -> (bags, d), and what the kernel keeps for its backward."""
        t_bdim, i_bdim, o_bdim = in_dims[:3]
        w_bdim = in_dims[6] if len(in_dims) > 6 else None
        size = info.batch_size
        if t_bdim is not None:
            table, t_bdim = ensure_bdim(table, t_bdim, size), 0
        indices, offsets = ensure_bdim(indices, i_bdim, size), ensure_bdim(offsets, o_bdim, size)
        count = offsets.shape[-1] - include_last_offset
        if indices.ndim != 2 or offsets.ndim != 2 or count < 0:
            shapes = [list(t.shape[1:]) for t in (indices, offsets)]
            raise RuntimeError(f"embedding_bag: expected indices and offsets to be vectors, got {shapes}")
        if not size:
            empty = table.new_empty(0, count, table.shape[-1])
            return (empty, *(indices.new_empty(0, n) for n in (indices.shape[1], count, count))), 0
        counted = scale_grad_by_freq and table.requires_grad  # the kernel's backward counts over all indices
        if counted or not _regular(offsets, indices.shape[1], include_last_offset):
            options = (scale_grad_by_freq, mode, sparse, weights, include_last_offset, padding_idx)
            return loop(
                info, emit, (t_bdim, 0, 0, None, None, None, w_bdim, None, None), table, indices, offsets, *options
            )
        rows = 0
        if padding_idx != without:
            padding_idx = wrap_dim(padding_idx, table.shape[-2])  # type: ignore[arg-type]
        if t_bdim is not None:
            rows = table.shape[1]
            indices = _in_own_table(indices, rows, None if padding_idx == without else padding_idx)
            table, sparse = table.flatten(0, 1), False
        ends = _shifted(offsets, indices.shape[1]).narrow(1, 0, count).flatten()
        if include_last_offset:
            ends = torch.cat((ends, ends.new_full((1,), indices.numel())))
        if weights is not None:
            weights = ensure_bdim(weights, w_bdim, size).flatten()
        out, *kept = emit(
            table, indices.flatten(), ends, scale_grad_by_freq, mode, sparse, weights, include_last_offset, padding_idx
        )
        return (out.reshape(size, count, out.shape[1]), *_kept(kept, size, count, rows)), 0

    return bags


def _regular(offsets: Tensor, length: int, include_last_offset: bool) -> bool:
    """Tell whether every sample's bags begin at its first index and end with its last, and there are bags at all."""
    if not offsets.shape[1]:
        return False
    last = every_sample(offsets[:, -1])
    ends = bool((last == length).all()) if include_last_offset else bool((last <= length).all())
    return ends and bool((every_sample(offsets[:, 0]) == 0).all())


def _shifted(places: Tensor, step: int) -> Tensor:
    """(B, *) -> (B, *), each sample's moved on by ``step``."""
    return places + torch.arange(places.shape[0], device=places.device, dtype=places.dtype).unsqueeze(1) * step


def _in_own_table(indices: Tensor, rows: int, padding_idx: int | None) -> Tensor:
    """(B, k) -> (B, k), rows of the tables one after the other; what is padding stays in the first one."""
    inside = (indices >= 0) & (indices < rows)
    own = torch.where(inside, _shifted(indices, rows), indices.shape[0] * rows)  # no other sample's row
    return own if padding_idx is None else torch.where(indices == padding_idx, padding_idx, own)


def _kept(kept: list[Tensor], size: int, count: int, rows: int) -> list[Tensor]:
    """The bag of each index, the bags' sizes, and for the maximum its indices: of every sample's own."""
    bag_of, sizes, largest = kept
    bag_of = bag_of.reshape(size, -1) if bag_of.numel() else bag_of.new_empty(size, 0)
    bag_of = _shifted(bag_of, -count) if bag_of.numel() else bag_of
    each = []
    for t in (sizes, largest):
        if t.ndim == 2:  # of the maximum
            t = t.reshape(size, count, t.shape[1])
            filled = sizes.reshape(size, -1)[:, :count].unsqueeze(-1) > 0
            moved = t - rows * torch.arange(size, device=t.device, dtype=t.dtype).reshape(-1, 1, 1)
            each.append(torch.where(filled, moved, t))
        elif t.numel() == size * count:
            each.append(t.reshape(size, count))
        else:  # with the last offset, where the kernel keeps nothing
            each.append(t.new_zeros(size, count + 1))
    return [bag_of, *each]


pack.family(
    _bags,
    aten.embedding_bag.default,
    aten.embedding_bag.padding_idx,
    aten._embedding_bag.default,
    aten._embedding_bag_forward_only.default,
)
