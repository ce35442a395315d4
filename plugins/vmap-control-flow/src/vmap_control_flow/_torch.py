"""The names of PyTorch's own that this pack uses; tried on 2.11, 2.13 and 2.15."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

higher_order: Any = torch.ops.higher_order
tree_flatten = pytree.tree_flatten
tree_unflatten = pytree.tree_unflatten
DisableTorchFunction: Any = torch._C.DisableTorchFunction
AT_ONCE = {"torch._tensor", "torch.functional", "torch.nn.functional", "torch.overrides", "torch._ops"}
"""Modules of PyTorch whose functions do nothing before they read a value: they may be called again."""
