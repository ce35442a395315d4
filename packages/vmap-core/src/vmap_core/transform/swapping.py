"""Modules with other tensors in the places of their parameters and buffers.

A level knows which modules have them: what runs a second time in a backward pass, a checkpoint's function, needs them again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..levels.stack import current_levels


class Place(NamedTuple):
    """Where a module keeps a parameter or a buffer."""

    holder: dict[str, Any]
    key: str
    name: str

    @property
    def now(self) -> Any:
        """The tensor there."""
        return self.holder[self.key]


def places_of(module: nn.Module, *, parameters: bool = True) -> list[Place]:
    """Return the places of a module's parameters (unless told not to) and buffers; what is tied has one name."""
    places: list[Place] = []
    names: dict[int, str] = {}
    for prefix, part in module.named_modules():
        for holder in (part._parameters, part._buffers) if parameters else (part._buffers,):
            for key, tensor in holder.items():
                if tensor is not None:
                    name = names.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
                    places.append(Place(holder, key, name))
    return places


@contextlib.contextmanager
def swapped(module: nn.Module, places: Sequence[Place], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put tensors in places of a module for a while. torch.func.functional_call does the same in three times the time."""
    kept = [place.now for place in places]
    for place, tensor in zip(places, tensors, strict=True):
        place.holder[place.key] = tensor
    try:
        with known_as_swapped(module):
            yield
    finally:
        for place, tensor in zip(places, kept, strict=True):
            place.holder[place.key] = tensor


class known_as_swapped:
    """Tells the innermost level that a module has other tensors in its places during a block."""

    def __init__(self, module: nn.Module) -> None:
        levels = current_levels()
        self.module, self.level = module, levels[-1] if levels else None

    def __enter__(self) -> None:
        """Tell it."""
        if self.level is not None:
            self.before = self.level.swapped
            self.level.swapped = (*self.before, self.module)

    def __exit__(self, *exc: object) -> None:
        """Tell it that they are back."""
        if self.level is not None:
            self.level.swapped = self.before


def as_now() -> Callable[[], AbstractContextManager[None]]:
    """Return what makes contexts in which every module with other tensors in its places has those of now."""
    modules = dict.fromkeys(module for level in current_levels() for module in level.swapped)
    found = [(module, places_of(module)) for module in modules]
    swaps = [(module, places, [place.now for place in places]) for module, places in found]

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for swap in swaps:
                stack.enter_context(swapped(*swap))
            yield

    return again if swaps else contextlib.nullcontext
