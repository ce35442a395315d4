"""Whether a program is being captured in this thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.overrides import TorchFunctionMode

from ..torch_compat.mode_stack import mode_at, stack_size
from .presence import presence


class RecordingMode(TorchFunctionMode):
    """A mode that watches this thread for a recorder."""

    def __init__(self, recorder: Any) -> None:
        """Watch for a recorder."""
        self.recorder = recorder

    def __enter__(self) -> Any:
        """Begin to watch."""
        try:
            presence.enter(self)
            return super().__enter__()
        except BaseException:  # an interrupt
            presence.leave(self)
            raise

    def __exit__(self, *exc: Any) -> None:
        """Watch no longer."""
        try:
            super().__exit__(*exc)
        finally:
            presence.leave(self)


def current() -> Any:
    """Return the recorder that watches this thread, if one does."""
    for i in range(stack_size()):
        mode = mode_at(i)
        if isinstance(mode, RecordingMode):
            recorder = mode.recorder
            return None if recorder.failure is not None or recorder.paused else recorder
    return None


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Run something whose result no computation depends on."""
    recorder = current()
    if recorder is None:
        yield
        return
    recorder.paused = True
    try:
        yield
    finally:
        recorder.paused = False
