"""The state of PyTorch in which derivatives can be taken, whatever the caller's is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.hooks import RemovableHandle

from vmap_core.extend import BatchedTensor

from ._torch import fwd_grad_enabled, set_fwd_grad_enabled

F = TypeVar("F", bound=Callable[..., Any])


def takes_derivatives(function: F) -> F:
    """Return a function that runs outside inference mode and with forward mode on; grad mode stays the caller's.

    In inference mode, and in an autograd.Function's forward, PyTorch records nothing: a transform would take that for a
    derivative of zero.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if fwd_grad_enabled() and not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        grad = torch.is_grad_enabled()
        with torch.inference_mode(False), set_fwd_grad_enabled(True), torch.set_grad_enabled(grad):
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def usable(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor that autograd takes: a copy of one that was made in inference mode."""
    return x.clone() if x.is_inference() else x


def physical(x: Any) -> Any:
    """Return the tensor behind all levels."""
    while type(x) is BatchedTensor:
        x = x._value
    return x


class recorded:
    """Runs a block with grad mode on.

    Not `torch.enable_grad`: to set the mode is a call that each level is asked about, also where it is on.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        """Switch it on."""
        self._before = torch.is_grad_enabled()
        if not self._before:
            torch.set_grad_enabled(True)

    def __exit__(self, *exc: object) -> None:
        """Put it back, whatever the block has done to it."""
        if torch.is_grad_enabled() != self._before:
            torch.set_grad_enabled(self._before)


def hooks_made() -> int:
    """Return how many hooks there have been in this process: a graph recorded since has none if it is the same."""
    count: int = RemovableHandle.next_id
    return count + _checkpoints


def note_checkpoint() -> None:
    """Count a checkpoint as a hook: outside the engine it would compute again for every tensor that it has saved."""
    global _checkpoints
    _checkpoints += 1


_checkpoints = 0
