"""Memory: what a run takes, what there is, and how an allocation fails."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..dispatch.lowering import LoweredTensor
from ..torch_compat.dispatcher import TorchDispatchMode
from ..torch_compat.trees import tree_leaves

SHARE = 0.5  # of the free memory, for one chunk: outputs and graphs of other chunks want some as well


class Meter(TorchDispatchMode):
    """Measures the bytes that are alive at once among those that a run allocates.

    Attributes:
        peak: the most so far.
        peaks: the most so far on each device.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()
        self.alive = self.peak = 0
        self.peaks: dict[torch.device, int] = {}
        self._alive_on: dict[torch.device, int] = {}
        self._owners: dict[int, int] = {}  # tensors of each storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count the memory that its results own."""
        if LoweredTensor in types:
            return NotImplemented  # it answers by a rule, which makes physical operations
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if type(t) is Tensor}
        for t in tree_leaves(out):
            if type(t) is Tensor and t.layout == torch.strided:
                storage = t.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key in given and key not in self._owners:
                    continue  # a view of what was there before
                if key not in self._owners:
                    self._count(t.device, size)
                self._owners[key] = self._owners.get(key, 0) + 1
                weakref.finalize(t, self._freed, key, t.device, size).atexit = False
        return out

    def _count(self, device: torch.device, size: int) -> None:
        self.alive += size
        self.peak = max(self.peak, self.alive)
        self._alive_on[device] = self._alive_on.get(device, 0) + size
        self.peaks[device] = max(self.peaks.get(device, 0), self._alive_on[device])

    def _freed(self, key: int, device: torch.device, size: int) -> None:
        self._owners[key] -= 1
        if not self._owners[key]:
            del self._owners[key]
            self._count(device, -size)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler for us."""
        return False


def free_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a device; those that PyTorch has reserved and does not use are."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return int(kilobytes) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 30


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


# What PyTorch's allocator for the CPU says, CUDA itself, and a library that allocates for itself.
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"


def reclaim() -> None:
    """Give back what nobody uses: what failed before may have left tensors in cycles, and the allocator pieces."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
