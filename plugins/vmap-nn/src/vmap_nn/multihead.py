"""Multi-head attention and Transformer layers: with shared weights one call for all samples."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import multi_head_attention_forward

from vmap_core.extend import (
    BatchedTensor,
    Level,
    RulePack,
    call_inherent,
    ensure_bdim,
    patch,
    unwrap,
    user_location,
    wrap,
)

from ._torch import IS_CAUSAL_MASK

pack = RulePack("nn.multihead")

_DEFAULTS = {n: p.default for n, p in inspect.signature(multi_head_attention_forward).parameters.items()}
_NAMES = tuple(_DEFAULTS)
_WEIGHTS = tuple(n for n in _NAMES if n.endswith(("_weight", "_bias")) or n in ("bias_k", "bias_v"))


@pack.logical(multi_head_attention_forward)
def multi_head_attention(info: Level, *args: Any, **kwargs: Any) -> Any:
    """(L, E) or (L, N, E), (S, E) or (S, N, E) -> (L, E) or (L, N, E), (L, S) or (N, L, S)."""
    given = {**_DEFAULTS, **dict(zip(_NAMES, args, strict=False)), **kwargs}
    values, dims, _ = unwrap(info, tuple(given.values()))
    call, bdims = dict(zip(_NAMES, values, strict=True)), dict(zip(_NAMES, dims, strict=True))
    if not _can_fold(info, call, bdims):
        return call_inherent(info, multi_head_attention_forward, args, kwargs)
    size = info.batch_size
    single = call["query"].ndim - (bdims["query"] is not None) == 2
    folded: dict[int, Tensor] = {}  # attention to itself stays that: one product projects all three
    for name in ("query", "key", "value"):  # the mapped dim goes before N
        x = folded.get(id(given[name]))
        if x is None:
            x = ensure_bdim(call[name], bdims[name], size).movedim(0, 1)
            x = folded[id(given[name])] = x if single else x.flatten(1, 2)
        call[name] = x
    n = 1 if single else call["query"].shape[1] // size
    if call["key_padding_mask"] is not None:
        mask = ensure_bdim(call["key_padding_mask"], bdims["key_padding_mask"], size)
        call["key_padding_mask"] = mask if single else mask.flatten(0, 1)
    if call["attn_mask"] is not None and call["attn_mask"].ndim - (bdims["attn_mask"] is not None) == 3:
        call["attn_mask"] = ensure_bdim(call["attn_mask"], bdims["attn_mask"], size).flatten(0, 1)
    out, weights = multi_head_attention_forward(**call)
    if not single:
        out = out.unflatten(1, (size, n))
        weights = None if weights is None else weights.unflatten(0, (size, n))
    return wrap(info, out, 1), None if weights is None else wrap(info, weights, 0)


def _can_fold(info: Level, call: dict[str, Any], bdims: dict[str, Any]) -> bool:
    """Tell whether the mapped dim may become part of N: everything that N does not reach is shared."""
    query, mask = call["query"], call["attn_mask"]
    ranks = {call[n].ndim - (bdims[n] is not None) for n in ("query", "key", "value")}
    drawn = call["training"] and call["dropout_p"] > 0
    return (
        info.batch_size > 0
        and ranks in ({2}, {3})
        and query.numel() > 0
        and all(bdims[n] is None for n in _WEIGHTS)
        and call["static_k"] is None
        and call["static_v"] is None
        and not (mask is not None and bdims["attn_mask"] is not None and mask.ndim == 3)
        and (not drawn or info.randomness == "different")
    )


@pack.logical(torch.ops.aten._nested_tensor_from_mask_left_aligned.default)
def is_left_aligned(info: Level, t: Any, mask: Any) -> bool:
    """(N, L, E), (N, L) -> False: nested tensors are not mapped, and no mapped encoder makes them."""
    if not torch.is_grad_enabled():
        warnings.warn(
            f"vmap: in inference TransformerEncoder computes with nested tensors, which write zeros at padded positions; "
            f"a mapped one, at {user_location()}, computes those positions as it does in training. To have both alike: "
            f"TransformerEncoder(..., enable_nested_tensor=False), or mask the output.",
            stacklevel=2,
        )
    return False


@patch(
    IS_CAUSAL_MASK,
    "The encoders ask whether a mask is causal, a hint for speed: of a mapped mask it would read values that differ.",
)
def no_hint_for_mapped_masks(native: Any) -> Any:
    """Take a mapped mask for none that is causal, unless that is said."""

    def detect(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        mapped = type(mask) is BatchedTensor and mask._bdim is not None
        return is_causal is True if mapped else native(mask, is_causal, size)

    return detect
