"""Calls that take one more dim in front of a tensor: of rules, the one that a short cut makes (see `dispatch.specialise`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Leading:
    """A call that takes one more dim in front of one tensor, and gives it in front of its result.

    Attributes:
        call: the function.
        order: which of the operator's arguments it takes, in its order.
        ranks: for the tensors, how many dims they may have: the least and the most, the batch dim among them.
        batched: which argument is the one.
        keeps_rank: the result has as many dims as that one.
    """

    call: Callable[..., Any]
    order: tuple[int, ...]
    ranks: tuple[tuple[int, int], ...]
    batched: int = 0
    keeps_rank: bool = False
