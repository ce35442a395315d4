"""Call a module with other tensors in the places of its parameters and buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


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
def swapped(places: Sequence[Place], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put tensors in the places for a while. torch.func.functional_call does the same in three times the time."""
    kept = [place.now for place in places]
    for place, tensor in zip(places, tensors, strict=True):
        place.holder[place.key] = tensor
    try:
        yield
    finally:
        for place, tensor in zip(places, kept, strict=True):
            place.holder[place.key] = tensor
