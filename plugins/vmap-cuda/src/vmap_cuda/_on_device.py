"""Which operations a CUDA graph repeats: those that the device does by itself."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from vmap_core import CaptureError
from vmap_core.extend import user_location

from ._torch import TorchDispatchMode, tree_leaves

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def refusal(reason: str, instead: str = "vmap_core.compile") -> CaptureError:
    """Make the error for what a CUDA graph cannot hold, at the user's line."""
    return CaptureError(f"vmap: no CUDA graph can be made: {reason}, at {user_location()}. Instead: {instead}.")


class OnDevice(TorchDispatchMode):
    """Runs operations, and raises for one that a replay would not repeat.

    A replay repeats what the device does, and nothing on the host. There, only values that are the same in every call may
    be made: not random ones, and none that come from the device. PyTorch itself tells where it waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        """Watch for a device."""
        super().__init__()
        self.device = device

    def __enter__(self) -> Any:
        """Start."""
        self._before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*prototype feature.*")  # it does not see all; the capture sees the rest
            torch.cuda.set_sync_debug_mode("error")
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)
        torch.cuda.set_sync_debug_mode(self._before)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        elsewhere = [t for t in given if t.device != self.device]
        if elsewhere and len(elsewhere) < len(given) and (op in _COPIES or any(t.ndim for t in elsewhere)):
            raise refusal(f"{op} takes tensors on {self.device} and on {elsewhere[0].device}")
        try:
            out = op(*args, **(kwargs or {}))
        except RuntimeError as error:
            if "synchronizing CUDA operation" in str(error):
                raise refusal(f"{op} waits for the device") from error
            raise
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.device != self.device:
                if len(elsewhere) < len(given):
                    raise refusal(f"{op} brings a tensor from {self.device} to {t.device}")
                if torch.Tag.nondeterministic_seeded in op.tags:
                    raise refusal(f"{op} draws random numbers on {t.device}")
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler for us."""
        return False
