"""Operators said in others, by the decomposition that PyTorch knows."""

from __future__ import annotations

from typing import Any

from ..rulekit.asking import asking
from ..rulekit.rule import Rule
from ..torch_compat.operators import RANDOM, OpOverload, decomposition_of, is_composite
from .door2 import native
from .lowering import run_lowered


def decompose(op: OpOverload) -> Rule:
    """Make the rule that says an operator in others, by the decomposition that PyTorch knows for it.

    Those others then meet their own rules. For a body of one's own there is ``RulePack.composite``.

    Raises:
        TypeError: none is known.

    Examples:
        >>> import torch
        >>> from vmap_core.extend import RulePack, decompose
        >>> RulePack("acme_hardswish").family(decompose, torch.ops.aten.hardswish.default)
    """
    body: Any = decomposition_of(op, prims=True)
    if body is None:
        if not is_composite(op):
            raise TypeError(f"no decomposition of {op} is known; give one with RulePack.composite")
        body = native(op, op)

        def composite(info: Any, *args: Any, **kwargs: Any) -> Any:
            return run_lowered(info, body, args, kwargs, mutates=op._schema.is_mutable)

        return Rule(composite, "logical")

    def decompose(info: Any, *args: Any, **kwargs: Any) -> Any:
        with info.pushed():
            return body(*args, **kwargs)

    random = RANDOM in op.tags
    return Rule(decompose if random else asking(decompose, op, logical=True), "logical")
