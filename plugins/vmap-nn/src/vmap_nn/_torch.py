"""The private PyTorch API that this pack uses."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn import _reduction

bindings: Any = torch._C._nn
"""The functions of ``torch.nn.functional`` that are C++."""

# The package has the operator under the module's name.
flex: Any = sys.modules["torch._higher_order_ops.flex_attention"]

attention_choice: Any = torch._fused_sdp_choice
"""What kernel PyTorch takes for scaled_dot_product_attention with these arguments."""

IS_CAUSAL_MASK = "torch.nn.modules.transformer._detect_is_causal_mask"


def reduction_code(name: str) -> int:
    """Return the number that stands for a reduction in C++: ``"mean"`` is 1."""
    return _reduction.get_enum(name)


def dual_level() -> int:
    """Return the innermost level of forward mode in this process; -1 where there is none."""
    level: int = forward_ad._current_level
    return level
