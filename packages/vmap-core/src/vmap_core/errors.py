"""Errors and warnings of vmap. Classes derive from what torch.func.vmap raises in the same situation."""

from __future__ import annotations

import functools
import sys
from types import FrameType
from typing import Any


class VmapError(RuntimeError):
    """Base of the errors raised while a mapped function runs."""


class EscapedTensorError(VmapError):
    """A BatchedTensor was used outside the vmap that made it."""


class DataDependentError(VmapError):
    """The value of a batched tensor was asked for, and it differs from sample to sample."""


class RandomnessError(VmapError):
    """A random operation ran under ``randomness="error"``, or cannot run under the chosen mode."""


class InplaceError(VmapError):
    """Batched data was written into a tensor that carries no batch dim."""


class UnsupportedError(VmapError):
    """The operation has no meaning, or no implementation, on a batched tensor."""


class OpaqueCodeError(UnsupportedError):
    """C++ that is not handed over to a level was given a batched tensor; an autograd.Function then goes sample by sample."""


class ComplexGraphError(UnsupportedError):
    """A graph of complex operations would be recorded from lowered tensors; their callers then take sample by sample."""


class CaptureError(VmapError):
    """A program cannot be captured without baking in something that another call may see differently."""


class FallbackError(VmapError):
    """An operation would run in the slow loop while the fallback policy is ``"error"``."""


class PackConflictError(VmapError):
    """Two rule packs offer the same name, or a rule for the same operator."""


class RuleError(VmapError, ValueError):
    """A batching rule returned something else than an output and its batch dims."""


class FallbackWarning(UserWarning):
    """An operation ran in the slow loop over the batch.

    Attributes:
        op: the operator, as an ``OpOverload`` or a function.
    """

    def __init__(self, message: str, op: object = None) -> None:
        """Keep the operator beside the message."""
        super().__init__(message)
        self.op = op


class RandomnessWarning(UserWarning):
    """A mapped function seems to have drawn a number of Python's or NumPy's, once for all samples."""


class CaptureWarning(UserWarning):
    """A compiled function cannot be captured, and runs as it is."""


# Modules whose frames are never "the user's code"; packs add their own name when they register.
internal_modules = {"torch", "vmap_core", "contextlib", "copy", "functools"}


def user_frame() -> FrameType | None:
    """Return the innermost frame outside PyTorch, vmap_core and the rule packs."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] not in internal_modules or name == "vmap_core.demo":
            return frame
        frame = frame.f_back
    return None


class located:
    """Lets `user_location` return a given place in a block: where an error arose that is made later."""

    place: str | None = None

    def __init__(self, place: str | None) -> None:
        """Take the place; None for where it is made."""
        self.given = place

    def __enter__(self) -> None:
        """Let it be returned."""
        self.before, located.place = located.place, self.given

    def __exit__(self, *exc: object) -> None:
        """End this."""
        located.place = self.before


def user_location() -> str:
    """Return ``file:line`` of the user's code, or ``"an unknown place"``."""
    if located.place is not None:
        return located.place
    frame = user_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "an unknown place"


def function_name(func: Any) -> str:
    """Return what messages call a function."""
    if hasattr(func, "__name__"):
        return str(func.__name__)
    if isinstance(func, functools.partial):
        return f"functools.partial({function_name(func.func)}, ...)"
    return repr(func)
