"""A vmap that never gives the result of the run it was called for: it captures on other values, and replays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vmap_core import capture, vmap
from vmap_core.extend import current_levels


def captured_vmap(func: Callable[..., Any], in_dims: Any = 0, out_dims: Any = 0, **options: Any) -> Callable[..., Any]:
    """Take vmap's place in a comparison: the program is captured with the samples in another order."""
    vmapped = vmap(func, in_dims, out_dims, **options)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if current_levels():
            return vmapped(*args, **kwargs)
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        example = [_other_order(a, d) if isinstance(a, Tensor) else a for a, d in zip(args, dims, strict=True)]
        return capture(vmapped, *example, **kwargs)(*args, **kwargs)

    return wrapped


def _other_order(x: Tensor, dim: Any) -> Tensor:
    other = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)  # a program is for these strides
    other.copy_(x.detach() if dim is None else x.detach().roll(1, dim))
    return other.requires_grad_(x.requires_grad)
