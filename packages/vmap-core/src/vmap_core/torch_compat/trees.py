"""PyTorch's nested containers."""

from __future__ import annotations

from torch.utils._pytree import SUPPORTED_NODES, tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = ["SUPPORTED_NODES", "tree_flatten", "tree_leaves", "tree_map", "tree_unflatten"]
