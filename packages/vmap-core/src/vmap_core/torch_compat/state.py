"""PyTorch's state in this thread, and what is set for the process: leaving all of it for a moment."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack as dispatch_modes

from .dispatcher import WithDispatchKeys, excluded_keys, included_keys
from .functorch import without_transforms
from .mode_stack import EnableTorchFunction, without_modes

_device: Any = torch._GLOBAL_DEVICE_CONTEXT


@contextlib.contextmanager
def initial_state() -> Iterator[None]:
    """Run a block in the state that a new thread starts in: gradients on, and nothing else.

    Not in inference mode, no levels and no modes of the user's, no transforms of torch.func, no autocast, whatever kernel
    or hook it is called from; new tensors are float32 and on the CPU. The default dtype is that of the process, so other
    threads see it for this moment.
    """
    with contextlib.ExitStack() as stack:
        dtype, device = torch.get_default_dtype(), vars(_device).pop("device_context", None)
        if dtype is not torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        stack.callback(vars(_device).update, device_context=device)
        if dispatch_modes():
            from torch.utils._python_dispatch import _disable_current_modes  # it imports half of the compiler

            stack.enter_context(_disable_current_modes())
        stack.enter_context(without_modes())
        stack.enter_context(without_transforms())
        stack.enter_context(torch.inference_mode(False))  # switches gradients and forward mode on, too
        stack.enter_context(EnableTorchFunction())
        stack.enter_context(WithDispatchKeys(*_keys_of_a_new_thread()))
        yield


@functools.cache
def _keys_of_a_new_thread() -> tuple[Any, Any]:
    """Return the dispatch keys that are included and excluded where nobody has changed them."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend((included_keys(), excluded_keys())))
    thread.start()
    thread.join()
    return found[0], found[1]
