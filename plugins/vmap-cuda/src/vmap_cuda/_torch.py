"""The private PyTorch API that this pack uses."""

from __future__ import annotations

import torch
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

foreach_copy = torch._foreach_copy_

__all__ = [
    "OpOverload",
    "TorchDispatchMode",
    "dual_level",
    "end_allocation",
    "foreach_copy",
    "transforms_active",
    "tree_leaves",
]


def dual_level() -> int:
    """Return the innermost level of forward mode in this process; -1 where there is none."""
    level: int = forward_ad._current_level
    return level


def end_allocation(device: int, pool: object) -> None:
    """Tell the allocator that a capture into a pool has ended."""
    torch._C._cuda_endAllocateToPool(device, pool)  # type: ignore[arg-type]
