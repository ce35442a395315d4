"""What strides say of a tensor."""

from __future__ import annotations

import torch


def contiguous_strides(shape: torch.Size, strides: tuple[int, ...], fmt: torch.memory_format) -> bool:
    """Tell whether strides are those of a contiguous tensor in the given memory format."""
    order = {
        torch.channels_last: (0, 2, 3, 1),
        torch.channels_last_3d: (0, 2, 3, 4, 1),
    }.get(fmt, tuple(range(len(shape))))
    if len(order) != len(shape):
        return False
    expected = 1
    for d in reversed(order):
        if shape[d] != 1 and strides[d] != expected and shape.numel():
            return False
        expected *= shape[d]
    return True
