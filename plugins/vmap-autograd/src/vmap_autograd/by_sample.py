"""The methods of an autograd.Function sample by sample: for code in C++ that cannot be mapped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import (
    BatchedTensor,
    FallbackError,
    Level,
    OpaqueCodeError,
    VmapError,
    below,
    current_levels,
    current_recorder,
    report,
    sequential_vmap,
    unwrap,
)

from ._torch import StopRecomputation

_HINT = (
    "Instead: give the Function a vmap staticmethod, or register what it calls as an operator (torch.library.custom_op), "
    "which can have a rule."
)


def by_sample_if_need_be(
    level: Level,
    name: str,
    mapped: Callable[[], Any],
    of_sample: Callable[..., Any],
    args: tuple[Any, ...],
    tensors: Sequence[Any],
) -> Any:
    """Return what a method gives on batched tensors; if C++ in it cannot be mapped, run it on one sample after the other.

    C++ that is not handed over to a level finds no data in a batched tensor. Mostly that is an OpaqueCodeError; but C++ may
    look before it asks, and complain of a dtype or of a number of dims in words of its own. So any error counts, unless a
    sample on its own gives one, too.

    Args:
        level: where the method runs.
        name: what messages call it.
        mapped: runs the method.
        of_sample: runs it on a sample of the arguments.
        args: as the mapped function sees them.
        tensors: those of them that the method could write to. An attempt that has done so is not followed by another.
    """
    before = _versions(tensors)
    try:
        return mapped()
    except (torch.OutOfMemoryError, MemoryError, StopRecomputation):
        raise
    except Exception as error:
        _, _, batched = unwrap(level, args)
        opaque = isinstance(error, OpaqueCodeError)
        if (isinstance(error, VmapError) and not opaque) or not batched or _versions(tensors) != before:
            raise
        try:
            with below(level) if level in current_levels() else contextlib.nullcontext():
                out = sequential_vmap(of_sample).run_at(level, args, {})
        except FallbackError:
            raise
        except Exception as own:
            if opaque and not isinstance(own, VmapError):
                raise  # a sample's, which the attempt has not come to
            raise error from None
        if _versions(tensors) != before:
            raise  # what it gives are other tensors than those that it has written to
    recorder = current_recorder()
    if recorder is not None:  # it may have read values, which nothing tells
        recorder.fail(recorder.refusal(f"{name} calls code in C++ that cannot be mapped"))
    report(name, "calls code in C++ that cannot be mapped", _HINT)
    return out


def _versions(tensors: Sequence[Any]) -> list[int]:
    """Return how often each tensor has been written to, as far as PyTorch counts it."""
    versions = []
    for x in tensors:
        while type(x) is BatchedTensor:
            x = x._value
        if isinstance(x, Tensor) and not x.is_inference():
            versions.append(x._version)
    return versions
