"""Operands from NumPy, as torch.Tensor's operators take them; NumPy need not be installed."""

from __future__ import annotations

import sys
from typing import Any


def numpy_number(x: Any) -> Any:
    """Return the Python number that one of NumPy's is for a tensor; None for anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(x, numpy.generic):
        return None
    kinds = {"b": float, "i": int, "u": int, "f": float}  # PyTorch reads one of NumPy's bools as a float
    return kinds[x.dtype.kind](x) if x.dtype.kind in kinds else None


def is_array(x: Any) -> bool:
    """Tell whether ``x`` is an array of NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(x, numpy.ndarray)


def with_array(x: Any, array: Any, name: str) -> Any:
    """Return ``x`` and an array combined by an operator: NumPy computes it, and PyTorch makes a tensor of the result.

    Args:
        x: the tensor on the left.
        array: the array on the right.
        name: the operator's method, such as ``"__add__"``.
    """
    raise AssertionError("a name for a rule; plain tensors never come here")
