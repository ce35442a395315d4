"""Tests of batching rules: a mapped operator against the Python loop over the batch.

from vmap_core.testing import check_rule

def test_frobenius():
    check_rule(torch.ops.mylib.frobenius, torch.randn(3, 4))
"""

from __future__ import annotations

from ..observe.difference import difference, empty_difference
from ._check import check_rule
from ._loop import loop, mapped, with_gradients
from ._samples import Levels, batched, choices, nested_choices, rows, strongest

__all__ = [
    "Levels",
    "batched",
    "check_rule",
    "choices",
    "difference",
    "empty_difference",
    "loop",
    "mapped",
    "nested_choices",
    "rows",
    "strongest",
    "with_gradients",
]
