"""PyTorch's stack of modes in this thread, which levels are on, and overridable calls that skip it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch._C import DisableTorchFunction as DisableTorchFunction
from torch._C import _disabled_torch_function_impl as disabled_torch_function_impl
from torch._C import _EnableTorchFunction as EnableTorchFunction
from torch._C import _get_function_stack_at as mode_at
from torch._C import _is_torch_function_all_disabled as overrides_off
from torch._C import _len_torch_function_stack as stack_size
from torch._C import _pop_torch_function_stack as pop_mode
from torch._C import _push_on_torch_function_stack as push_mode

from .versions import skip_one_hop

__all__ = [
    "DisableTorchFunction",
    "EnableTorchFunction",
    "disabled_torch_function_impl",
    "mode_at",
    "only_modes",
    "overrides_off",
    "pop_mode",
    "push_mode",
    "skip_one_hop",
    "stack_size",
    "without_modes",
]


class only_modes:
    """Runs a block with these modes on the stack and no others, neither levels nor the user's; gives those that were on it.

    A class: see Note [Contexts that change the stack] in `levels.level`.

    Args:
        modes: outermost first.
    """

    __slots__ = ("before", "modes")

    def __init__(self, modes: Sequence[Any] = ()) -> None:
        self.modes = modes

    def __enter__(self) -> list[Any]:
        """Take all off, and put these on."""
        self.before = [pop_mode() for _ in range(stack_size())][::-1]
        for mode in self.modes:
            push_mode(mode)
        return self.before

    def __exit__(self, *exc: object) -> None:
        """Put the others back."""
        for _ in self.modes:
            pop_mode()
        for mode in self.before:
            push_mode(mode)


def without_modes() -> only_modes:
    """Return a context with nothing on the stack."""
    return only_modes()
