"""Door 1: every PyTorch call that a mapped function makes on BatchedTensors enters here."""

from __future__ import annotations

from typing import Any

import torch

from ..torch_compat.bindings import emitter
from ..torch_compat.mode_stack import pop_mode, push_mode
from .containers import map_leaves
from .level import NO_KWARGS, Level, call
from .read import escaped
from .tensor import BatchedTensor


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KWARGS) -> Any:
    """Run a call on BatchedTensors at the innermost mode."""
    try:
        mode = pop_mode()
    except RuntimeError:  # no level is active in this thread
        return outside(func, args, kwargs)
    try:
        return at(mode, func, args, kwargs)
    finally:
        push_mode(mode)


def at(mode: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KWARGS) -> Any:
    """Run a call at a mode that has been taken off the stack: a level, or a mode of the user's own."""
    if type(mode) is Level:
        return call(mode, func, args, kwargs)
    return mode.__torch_function__(emitter(func), (torch.Tensor,), args, kwargs)


def outside(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Handle a call on tensors whose level is not active here.

    An unbatched one stands for the same value in every sample, so it may be used on (a cache filled inside the
    mapped function); a batched one means nothing any more.

    Raises:
        EscapedTensorError: a tensor is batched.
    """
    args, kwargs, dead = survivors(args, kwargs)
    if dead is None:
        return emitter(func)(*args, **kwargs)
    raise escaped(dead)


def survivors(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], BatchedTensor | None]:
    """Return the arguments with the values of what all samples shared; and a batched tensor among them, if any."""
    batched: list[BatchedTensor] = []

    def value(a: Any) -> Any:
        while type(a) is BatchedTensor and a._bdim is None:
            a = a._value
        if type(a) is BatchedTensor:
            batched.append(a)
        return a

    args, kwargs = map_leaves(value, (tuple(args), kwargs))
    return args, kwargs, batched[0] if batched else None
