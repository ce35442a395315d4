"""Fork and join: the samples that answer a question alike go on together, and come together again.

A fork asks each sample once. The samples of a group are a level of their own meanwhile (`vmap_core.extend.rows_level`), in the
place of the levels that the answer depends on: with two nested ones, a group holds pairs of their samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from vmap_core import CaptureError
from vmap_core.extend import (
    Level,
    UnsupportedError,
    current_levels,
    current_recorder,
    every_sample,
    make_batched,
    physical_with_dims,
    rows_level,
    rows_of,
    user_location,
)

from ._torch import tree_flatten, tree_unflatten


def one_answer(answer: Any, what: str) -> bool | None:
    """Return what a condition says for all samples; None where they differ, or there are none.

    Args:
        answer: a tensor of one element, or a number.
        what: what asks, for errors.

    Raises:
        RuntimeError: it has not one element.
        CaptureError: a program is being captured, which would go one way for ever.
    """
    if isinstance(answer, torch.Tensor) and answer.numel() != 1:
        raise RuntimeError(f"{what}: the condition must have one element, but has shape {tuple(answer.shape)}")
    value, dims = physical_with_dims(answer)
    if all(bdim is None for _, bdim in dims):
        return bool(value)
    if current_recorder() is not None:
        raise CaptureError(
            f"vmap: a program cannot be captured: {what}, at {user_location()}, goes by a condition that differs from sample to "
            f"sample, and how many samples go each way is another number in each call. Instead: torch.where, which computes both."
        )
    values = every_sample(answer) != 0
    count = int(values.sum())
    return count > 0 if values.numel() and count in (0, values.numel()) else None


class Fork:
    """The levels that an answer depends on, with all their samples as one level.

    Attributes:
        levels: outermost first; the last one is the running level, which is off the stack.
        outer: those that are on the stack.
        all: the level of all samples, or pairs of samples, in the order of memory.
    """

    def __init__(self, level: Level, answer: Any, what: str) -> None:
        """Find the levels.

        Args:
            level: the running level.
            answer: has a batch dim at one of the levels on the stack, or at this one.
            what: what asks, for errors.

        Raises:
            UnsupportedError: a mode of another library is between the levels.
        """
        value, dims = physical_with_dims(answer)
        first = next(i for i, (_, bdim) in enumerate(dims) if bdim is not None)
        self.levels = [x for x, _ in dims[first:]]
        self.outer = self.levels[:-1]
        active = current_levels()
        if self.levels[-1] is not level or active[len(active) - len(self.outer) :] != self.outer:
            raise UnsupportedError(
                f"vmap: {what}, at {user_location()}, with a mode of another library between two levels of vmap"
            )
        self.sizes = [x.batch_size for x in self.levels]
        count = torch.arange(math.prod(self.sizes), device=value.device)
        self.all = rows_level(self.levels, torch.unravel_index(count, self.sizes))

    def joined(self, groups: Sequence[tuple[Any, Any]], what: str) -> Any:
        """Return the results of all groups as tensors of the levels.

        Args:
            groups: the places of their samples, and their results, physical tensors with the samples in front.
            what: what has forked, for errors.

        Raises:
            RuntimeError: the results of two groups differ in structure, shape or dtype.
        """
        flat = [tree_flatten(out) for _, out in groups]
        back = torch.cat([places for places, _ in groups]).argsort()
        (first, spec), *others = flat
        for leaves, other in others:
            if other != spec:
                raise RuntimeError(f"{what}: the results differ in structure, {spec} and {other}")
            for a, b in zip(first, leaves, strict=True):
                if _kind(a) != _kind(b):
                    raise RuntimeError(f"{what}: the results differ, {_kind(a)} and {_kind(b)}")
        return tree_unflatten(
            [self._wrapped(column, back) for column in zip(*(leaves for leaves, _ in flat), strict=True)], spec
        )

    def _wrapped(self, parts: tuple[Any, ...], back: Any) -> Any:
        if not isinstance(parts[0], torch.Tensor):
            return parts[0]
        return self._of_levels(torch.cat(parts).index_select(0, back))

    def as_levels(self, x: Any) -> Any:
        """Return a tensor of the level of all samples as one of the levels."""
        return self._of_levels(rows_of(self.all, x))

    def _of_levels(self, out: Any) -> Any:
        out = out.reshape(*self.sizes, *out.shape[1:])
        for level in self.levels:
            out = make_batched(out, 0, level)
        return out


def _kind(a: Any) -> Any:
    return (tuple(a.shape[1:]), a.dtype) if isinstance(a, torch.Tensor) else a


def results(level: Level, out: Any) -> Any:
    """Return what a function has returned at a level, as physical tensors with the level's samples in front."""
    leaves, spec = tree_flatten(out)
    return tree_unflatten([rows_of(level, x) if isinstance(x, torch.Tensor) else x for x in leaves], spec)
