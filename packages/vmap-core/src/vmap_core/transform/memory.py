"""Memory: what a run takes, what there is, and how an allocation fails."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
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
    """Return the bytes that this process may have on a device; what PyTorch has reserved and does not use is free."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return max(0, min(_free_on_the_host(), *_free_in_groups()))


def _free_on_the_host() -> int:
    try:
        lines = (ROOT / "proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return int(kilobytes) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 30


ROOT = Path("/")
# Linux's control groups, of version 2 and 1: where they are, the limit and the use of one, what of that can be had back.
_GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _free_in_groups() -> Iterator[int]:
    """Yield what each control group that this process is in leaves it: a container's limit, a job's of a cluster.

    A container may see its own group as the outermost, under a path that it is told by the host; so what is not there is
    left out.
    """
    yield sys.maxsize
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in _GROUPS.keys() & set(controllers.split(",")):
            place, limit, used, cached = _GROUPS[controller]
            inner = PurePosixPath(path.lstrip("/"))
            for group in (inner, *inner.parents):
                files = ROOT / place / group
                try:
                    most = int((files / limit).read_text())  # ValueError: "max"
                    stat = dict(line.split() for line in (files / "memory.stat").read_text().splitlines())
                    yield most - int((files / used).read_text()) + int(stat.get(cached, 0))
                except (OSError, ValueError):
                    continue


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
