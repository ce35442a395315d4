"""flex_attention, by its formula: the score and mask functions are mapped as they are, with what they capture."""

from __future__ import annotations

from typing import Any

from vmap_core.extend import RulePack

from ._torch import flex

pack = RulePack("nn.flex")


@pack.composite(flex.flex_attention)
def flex_attention(
    query: Any, key: Any, value: Any, score_mod: Any, block_mask: Any, scale: Any, kernel_options: Any,
    score_mod_other_buffers: Any = (), mask_mod_other_buffers: Any = (),
) -> Any:  # fmt: skip
    """(N, H, L, E), (N, H, S, E), (N, H, S, F) -> (N, H, L, F), (N, H, L), (N, H, L)."""
    return flex.math_attention(
        query, key, value, score_mod, block_mask, scale, kernel_options, score_mod_other_buffers, mask_mod_other_buffers
    )
