"""Telling how outputs differ from what the loop gave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Batched kernels add in another order than those of one sample.
TOLERANCE = {
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
    torch.float32: 2e-4,
    torch.complex32: 2e-2,
    torch.complex64: 2e-4,
    torch.float64: 1e-7,
    torch.complex128: 1e-7,
}


def difference(expected: Sequence[Tensor], got: Sequence[Tensor], *, values: bool = True, slack: float = 1) -> str:
    """Return the first difference in words, or an empty string.

    Number, shape, dtype, layout, device and values are compared, not strides; NaN equals NaN.

    Args:
        expected: what the loop returned.
        got: what the mapped function returned.
        values: False for random outputs.
        slack: multiplies the tolerance.
    """
    if len(expected) != len(got):
        return f"{len(got)} outputs, expected {len(expected)}"
    for i, (e, g) in enumerate(zip(expected, got, strict=True)):
        for what in ("shape", "dtype", "layout", "device"):
            mine, theirs = getattr(g, what), getattr(e, what)
            if mine != theirs:
                return f"output {i}: {what} {_short(mine)}, expected {_short(theirs)}"
        if values:
            if e.layout == torch.sparse_coo:
                e, g = e.coalesce(), g.coalesce()
            tolerance = slack * TOLERANCE.get(e.dtype, 0)
            try:
                torch.testing.assert_close(g.detach(), e.detach(), rtol=tolerance, atol=tolerance, equal_nan=True)
            except AssertionError as error:
                return f"output {i}: " + " ".join(str(error).split())[:250]
    return ""


def empty_difference(one: Sequence[Tensor], got: Sequence[Tensor], outer: tuple[int, ...]) -> str:
    """Return how the outputs of an empty batch differ from what one sample's outputs say, or an empty string.

    Args:
        one: the outputs for one sample.
        got: the outputs of the mapped function.
        outer: the sizes of the levels.
    """
    return difference([o.new_empty((*outer, *o.shape)) for o in one], got, values=False)


def _short(value: object) -> object:
    return tuple(value) if isinstance(value, torch.Size) else value
