"""Embedding tables that are renormed when they are read (``max_norm``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import BatchedTensor, Level, RulePack, ensure_bdim, to_front
from vmap_core.extend import named_aten as aten

pack = RulePack("nn.embedding")


@pack.logical(aten.embedding_renorm_.default)
def embedding_renorm_(info: Level, table: Any, indices: Any, max_norm: float, norm_type: float) -> Any:
    """(v, d), (*) -> (v, d), in place: rows that are read and too long are made shorter.

    A table that all samples share gets what the loop leaves behind: every row that any sample reads.
    """
    rows, bdim = _physical(info, table)
    places, i_bdim = _physical(info, indices)
    if bdim is None:
        aten.embedding_renorm_.default(rows, places.reshape(-1), max_norm, norm_type)
        return table
    front = to_front(rows, bdim)
    size, count = front.shape[:2]
    if size:
        places = ensure_bdim(places, i_bdim, size)
        first = torch.arange(0, size * count, count, device=places.device).reshape(-1, *(1,) * (places.ndim - 1))
        inside = (places >= 0) & (places < count)
        places = torch.where(inside, places + first, size * count)  # another sample's rows are out of reach
        flat = (front if front.is_contiguous() else front.contiguous()).flatten(0, 1)
        aten.embedding_renorm_.default(flat, places.reshape(-1), max_norm, norm_type)
        if not front.is_contiguous():
            front.copy_(flat.reshape(front.shape))
    return table


def _physical(info: Level, x: Any) -> tuple[Tensor, int | None]:
    return (x._value, x._bdim) if type(x) is BatchedTensor and x._level is info else (x, None)
