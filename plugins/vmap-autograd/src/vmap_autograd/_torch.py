"""The private PyTorch API that this pack uses, and what PyTorch's versions do not have in common."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C import _functions
from torch._functorch.eager_transforms import _slice_argnums as slice_argnums
from torch._functorch.eager_transforms import (
    assert_non_empty_list_of_tensors,
    assert_non_empty_tensor_output,
    error_if_complex,
    jvp_str,
    treespec_pprint,
)
from torch.autograd import forward_ad
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

AccumulateGrad: Any = _functions.AccumulateGrad  # type: ignore[attr-defined]
"""The class of the nodes that leaves have in a graph."""
PythonNode: Any = torch._C._FunctionBase
"""The class of the nodes of custom Functions."""
UndefinedGrad: Any = _functions.UndefinedGrad  # type: ignore[attr-defined]
"""The class of functions that return what they are given and have no gradient."""
run_engine: Any = torch.autograd.Variable._execution_engine.run_backward  # type: ignore[attr-defined]

make_dual: Any = torch._VF._make_dual
unpack_dual: Any = torch._VF._unpack_dual
fwd_grad_enabled: Any = torch._C._is_fwd_grad_enabled
set_fwd_grad_enabled: Any = forward_ad._set_fwd_grad_enabled

_checkpoint: Any = torch.utils.checkpoint
TAKES_TUPLES = hasattr(_checkpoint, "_checkpoint_without_reentrant_generator_impl")  # since 2.14
# What checkpoint() looks up on every call.
CHECKPOINT_GENERATOR = "torch.utils.checkpoint._checkpoint_without_reentrant_generator" + "_impl" * TAKES_TUPLES
SAVES_BY_A_FUNCTION = hasattr(_checkpoint, "_NoopSaveInputs")  # until 2.12

StopRecomputation: Any = _checkpoint._StopRecomputationError
"""What ends a checkpoint's recomputation as soon as everything is there that is needed."""

# What functional_call() puts other tensors into a module with.
REPARAMETRIZE = "torch.nn.utils.stateless._reparametrize_module"

# The node of a tensor, also of a leaf.
NODE_OF_TENSOR = "torch.autograd.graph._get_grad_fn_or_grad_acc"

VMAP_OF_FUNCTIONAL = "torch.autograd.functional._vmap"

__all__ = [
    "CHECKPOINT_GENERATOR",
    "NODE_OF_TENSOR",
    "REPARAMETRIZE",
    "SAVES_BY_A_FUNCTION",
    "TAKES_TUPLES",
    "VMAP_OF_FUNCTIONAL",
    "AccumulateGrad",
    "PythonNode",
    "StopRecomputation",
    "TreeSpec",
    "UndefinedGrad",
    "assert_non_empty_list_of_tensors",
    "assert_non_empty_tensor_output",
    "dual_level",
    "error_if_complex",
    "fwd_grad_enabled",
    "jvp_str",
    "make_dual",
    "run_engine",
    "set_fwd_grad_enabled",
    "slice_argnums",
    "transforms_active",
    "tree_flatten",
    "tree_unflatten",
    "treespec_pprint",
    "unpack_dual",
]


def dual_level() -> int:
    """Return the innermost level of forward mode in this process; -1 where there is none."""
    level: int = forward_ad._current_level
    return level
