"""PyTorch's stack of modes in this thread, which levels are on, and overridable calls that skip it."""

from __future__ import annotations

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
    "overrides_off",
    "pop_mode",
    "push_mode",
    "skip_one_hop",
    "stack_size",
    "without_modes",
]


class without_modes:
    """Runs a block with nothing on the stack: no level, and no mode of the user's.

    A class: see Note [Contexts that change the stack] in `levels.level`.
    """

    def __enter__(self) -> None:
        """Take all off."""
        self.modes = [pop_mode() for _ in range(stack_size())]

    def __exit__(self, *exc: object) -> None:
        """Put them back."""
        for mode in reversed(self.modes):
            push_mode(mode)
