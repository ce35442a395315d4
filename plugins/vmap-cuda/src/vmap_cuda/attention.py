"""Fused attention: the mapped dim joins N, the kernels' own batch dim."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Level, RulePack
from vmap_core.extend import named_aten as aten

from ._merge import contiguous, merged

pack = RulePack("cuda.attention")

QKV = ("query", "key", "value")
SEEDS = ("philox_seed", "philox_offset")
OFFSETS = ("cum_seq_q", "cum_seq_k")
WITH_SIZES = (0, 0, None, None, None, None, None, None, 0)  # output, logsumexp, offsets, sizes, seeds, debug mask


def _rows_aligned(bias: Tensor) -> Tensor:
    """Return a bias whose rows begin at multiples of 16 bytes, as the kernel reads them; PyTorch's callers pad it so."""
    step = 16 // bias.element_size()
    if bias.stride(-1) == 1 and all(s % step == 0 for s in bias.stride()[:-1]):
        return bias
    width = bias.shape[-1]
    return torch.nn.functional.pad(contiguous(bias), (0, -width % step)).narrow(-1, 0, width)


# (N, H, L, E), (N, H, S, E), (N, H, S, F) -> (N, H, L, F), logsumexp (N, H, *) and what the backward call wants.

pack.family(
    merged(*QKV, out=WITH_SIZES, draws=True),
    aten._scaled_dot_product_flash_attention.default,
)
pack.family(
    merged(*QKV, "attn_bias", out=(0, 0, None, None), draws=True, prepare={"attn_bias": _rows_aligned}),
    aten._scaled_dot_product_efficient_attention.default,
)
pack.family(
    merged(*QKV, "attn_bias", out=WITH_SIZES, alone=OFFSETS, draws=True),
    aten._scaled_dot_product_cudnn_attention.default,
    aten._cudnn_attention_forward.default,
    aten._scaled_dot_product_fused_attention_overrideable.default,
)

# gradients (N, H, L, F), then the forward call's arguments and outputs -> gradients of query, key, value (and bias).

GIVEN = (*QKV, "out", "logsumexp")
pack.family(
    merged("grad_out", *GIVEN, out=(0, 0, 0), alone=OFFSETS, state=SEEDS),
    aten._scaled_dot_product_flash_attention_backward.default,
)
pack.family(
    merged("grad_out_", *GIVEN, "attn_bias", out=(0,) * 4, state=SEEDS, prepare={"attn_bias": _rows_aligned}),
    aten._scaled_dot_product_efficient_attention_backward.default,
)
pack.family(
    merged("grad_out", *GIVEN, "attn_bias", out=(0, 0, 0), alone=OFFSETS, state=SEEDS),
    aten._scaled_dot_product_cudnn_attention_backward.default,
    aten._cudnn_attention_backward.default,
)
pack.family(
    merged("grad_out", *GIVEN, "attn_bias", out=(0,) * 4, alone=OFFSETS, state=SEEDS),
    aten._scaled_dot_product_fused_attention_overrideable_backward.default,
)

# (N, L, H, E), (N, S, H, E), (N, S, H, F) -> (N, L, H, F), (N, H, *). Sequences of several lengths, which lie one after
# the other with offsets (cum_seq_q), are attended to one sample at a time.

pack.family(
    merged(*QKV, "seqused_k", out=(0, 0, None, None, 0), draws=True, alone=(*OFFSETS, "alibi_slopes", "block_table")),
    aten._flash_attention_forward.default,
)
pack.family(
    merged("grad_out", *GIVEN, out=(0, 0, 0), alone=OFFSETS, state=("rng_state", "unused")),
    aten._flash_attention_backward.default,
)
LENGTHS = ("cu_seqlens_q", "cu_seqlens_k")
pack.family(
    merged(
        *QKV, "bias", "seqlen_k", out=(0, 0, None, None, None, None), draws=True, alone=LENGTHS,
        prepare={"bias": _rows_aligned},
    ),
    aten._efficient_attention_forward.default,
)  # fmt: skip
pack.family(
    merged("grad_out_", *GIVEN, "bias", out=(0,) * 4, alone=LENGTHS, state=SEEDS, prepare={"bias": _rows_aligned}),
    aten._efficient_attention_backward.default,
)


@pack.rule(aten._fused_sdp_choice.default)
def fused_sdp_choice(
    info: Level, in_dims: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[int, None]:  # fmt: skip
    """(N, H, L, E), (N, H, S, E), (N, H, S, F), (N, H, L, S) -> the number of a kernel, by shapes and dtypes alone."""
    tensors = [
        t if d is None or not isinstance(t, Tensor) else t.select(d, 0) if t.shape[d] else _empty_sample(t, d)
        for t, d in zip((query, key, value, attn_mask), (*in_dims, None)[:4], strict=True)
    ]
    options: Any = {"scale": scale, "enable_gqa": enable_gqa}
    return aten._fused_sdp_choice.default(*tensors, dropout_p, is_causal, **options), None


def _empty_sample(x: Tensor, bdim: int) -> Tensor:
    return x.new_empty([n for d, n in enumerate(x.shape) if d != bdim]).requires_grad_(x.requires_grad)
