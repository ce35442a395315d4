"""Door 1: every PyTorch call that a mapped function makes on BatchedTensors enters here."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import EscapedTensorError, user_location
from ..torch_compat.bindings import emitter
from ..torch_compat.mode_stack import pop_mode, push_mode
from .containers import map_leaves
from .level import NO_KWARGS, Level, call
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
    dead: list[Any] = []

    def revive(a: Any) -> Any:
        if type(a) is BatchedTensor:
            if a._bdim is None:
                return revive(a._value)
            dead.append(a)
        return a

    args, kwargs = map_leaves(revive, (tuple(args), kwargs))
    if not dead:
        return emitter(func)(*args, **kwargs)
    raise escaped(dead[0])


def escaped(x: BatchedTensor) -> EscapedTensorError:
    """Make the error for a batched tensor whose level is not active here."""
    return EscapedTensorError(
        f"vmap: a tensor of the {x._level!r} was used at {user_location()}, where that level is not active: "
        f"Either your tensor may have escaped from inside a function being vmapped and this is a user error "
        f"(see https://pytorch.org/functorch/stable/ux_limitations.html). Instead: return it from the mapped function."
    )
