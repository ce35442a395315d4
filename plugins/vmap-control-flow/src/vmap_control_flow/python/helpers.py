"""What steps call in the place of Python's own: loops, indexing and contexts, with numbers that differ from sample to sample."""

from __future__ import annotations

import operator
import sys
from typing import Any

import torch

from vmap_core import DataDependentError, UnsupportedError
from vmap_core.extend import make_batched, user_location

from .contents import note_made
from .numbers import PerSample, beside, elementwise, holds
from .parting import Part


class Range:
    """``range`` of numbers that differ from sample to sample."""

    def __init__(self, *args: Any) -> None:
        """Take what ``range`` takes."""
        note_made(self)
        self.start, self.stop, self.step = (0, *args, 1) if len(args) == 1 else (*args, 1) if len(args) == 2 else args

    def __iter__(self) -> RangeIterator:
        """Return what gives its numbers."""
        return RangeIterator(self)

    def __len__(self) -> int:
        """Return how many there are, where samples agree; else they part."""
        return int(self.length())

    def length(self) -> Any:
        """Return how many numbers there are."""
        return elementwise(lambda *args: len(range(*args)), (self.start, self.stop, self.step))


class RangeIterator:
    """What gives its numbers: samples share a counter, and part where one of them is at its end."""

    def __init__(self, of: Range) -> None:
        note_made(self)
        self.start, self.step, self.length, self.taken = of.start, of.step, of.length(), 0

    def __iter__(self) -> RangeIterator:
        """Return itself."""
        return self

    def __length_hint__(self) -> int:
        """Return how many are left: samples part here, and not half way through what takes them all."""
        return int(self.length - self.taken)

    def __next__(self) -> Any:
        """Return the next number of each sample."""
        if self.taken < self.length:
            value = self.start + self.taken * self.step
            self.taken = self.taken + 1
            return value
        raise StopIteration


END = object()


def following(x: Any) -> Any:
    """Return ``next(x)``, or what stands for its end."""
    if type(x) is RangeIterator:
        return next(x, END)
    try:
        return next(x, END)
    except Part as part:
        raise part.as_error(f"what a {type(x).__name__} has taken for it would be lost") from None


def augmented(name: str, x: Any, value: Any) -> Any:
    """Return what ``x op= value`` gives."""
    if type(value) is PerSample and isinstance(x, torch.Tensor):
        given = (
            beside(getattr(operator, name[1:], None), x, value)
            if name[1:] in ("add", "sub", "mul", "truediv")
            else None
        )
        if given is None:
            raise value.part("a number beside a tensor")
        value = given[1]
    return getattr(operator, name)(x, value)


def contains(x: Any, container: Any) -> Any:
    """Return ``x in container``."""
    if isinstance(container, torch.Tensor) or not hasattr(container, "__next__"):
        return x in container
    try:
        return x in container
    except Part as part:
        raise part.as_error(f"what a {type(container).__name__} has taken for it would be lost") from None


def get(x: Any, index: Any) -> Any:
    """Return ``x[index]``."""
    if isinstance(x, torch.Tensor) and holds(index):
        index = _indices(index, x.device)
    return x[index]


def put(x: Any, index: Any, value: Any) -> None:
    """Do ``x[index] = value``."""
    if isinstance(x, torch.Tensor) and holds(index):
        index = _indices(index, x.device)
    if type(value) is PerSample and isinstance(x, torch.Tensor):
        _, value = beside(None, x, value) or (x, value)
    x[index] = value


def _indices(index: Any, device: Any) -> Any:
    """Return an index with the numbers that differ from sample to sample as tensors."""
    if type(index) is PerSample and index.kind is int and type(index.data) is not list:
        return make_batched(index.data.to(device), 0, index.level)
    if type(index) is tuple:
        return tuple(_indices(i, device) if type(i) is PerSample else i for i in index)
    return index


class Once:
    """A context of which nobody knows whether it can be entered again, where samples have parted in it."""

    def __init__(self, context: Any) -> None:
        self.context, self.was_entered = context, False

    def __enter__(self) -> Any:
        """Enter it, once.

        Raises:
            UnsupportedError: again.
        """
        if self.was_entered:
            raise UnsupportedError(
                f"vmap: samples cannot part (control_flow='split') in a with statement of a {type(self.context).__name__}, at "
                f"{user_location()}: it would be entered again for each group of them. Instead: let the with statement be in a function of "
                f"its own, without what parts them."
            )
        self.was_entered = True
        return self.context.__enter__()

    def __exit__(self, *error: Any) -> Any:
        """Leave it."""
        swallowed = self.context.__exit__(*error)
        if swallowed:
            look_at(error[1])
        return swallowed


_AGAIN = (torch.no_grad, torch.enable_grad, torch.set_grad_enabled, torch.inference_mode, torch.autocast, torch.device)


def entered(context: Any) -> Any:
    """Return what a with statement enters."""
    return context if isinstance(context, _AGAIN) else Once(context)


def caught() -> None:
    """Look at the error that the user's code has caught, or goes on with."""
    look_at(sys.exc_info()[1])


def look_at(error: Any) -> None:
    """Look at an error that goes no further.

    Raises:
        DataDependentError: samples would part there, or only some of them raise it.
    """
    if isinstance(error, Part):
        raise error.as_error("code around it catches all that is raised") from None
    if getattr(error, "_vmap_of_some", False):
        raise DataDependentError(
            f"vmap: a {type(error).__name__}, caught at {user_location()}, is that of some samples only, which have parted "
            f"(control_flow='split') before: the others would go the way of its handler, too. Instead: test for its cause with an if."
        ) from error
