"""Batching rules that were given to PyTorch itself, for custom operators, are taken as they are."""

from __future__ import annotations

from typing import Any

import torch

from ..levels.tensor import BatchedTensor
from ..torch_compat.operators import OpOverload, definition_of, has_kernel
from .loop import loop
from .rule import Rule, RuleFunction


def registered_rule(op: OpOverload) -> Rule | None:
    """Return the rule that ``torch.library.register_vmap`` or C++ registered for an operator, if one did."""
    if op.namespace in ("aten", "prims", "prim"):
        return None
    definition = definition_of(op)
    if definition is not None and definition._vmap_fn is not None:
        return Rule(definition._vmap_fn, "physical", "torch.library")
    if has_kernel(op, "FuncTorchBatched"):
        return Rule(_through_the_peer(op), "physical", "torch.library")
    return None


def _through_the_peer(op: OpOverload) -> RuleFunction:
    """Make the rule that calls the kernel registered for ``torch.func.vmap``: PyTorch keeps no other handle on it.

    The peer cannot hold the tensors of an outer level of ours; there the operator runs in the loop.
    """

    def registered(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        if any(type(a) is BatchedTensor for a in args):
            return loop(info, op, in_dims, *args, **kwargs)
        dims = tuple(in_dims[: len(args)])
        return torch.func.vmap(op, in_dims=dims, randomness=info.randomness)(*args, **kwargs), 0

    return registered
