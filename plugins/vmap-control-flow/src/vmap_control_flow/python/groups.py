"""A group of samples, what it holds copies of, and what becomes of the objects from around a function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vmap_core.extend import Level

from .contents import contents, fill
from .structure import Copier, tensors_in


@dataclass
class Copy:
    """A tensor of a group that is a copy of some samples of one from before the groups parted.

    Attributes:
        of: that tensor.
        now: the group's.
        samples: which samples of that one it holds.
        places: which samples of the group they are; None for all.
    """

    of: Any
    now: Any
    samples: Any
    places: Any
    was_written: bool = False
    before: Any = None

    def __post_init__(self) -> None:
        """Remember what it is."""
        self.before = (self.now._value, self.now._value._version)

    @property
    def written(self) -> bool:
        """Whether it has been written to."""
        value, version = self.before
        return self.was_written or self.now._value is not value or value._version != version

    def at(self, rows: Any, size: int) -> tuple[Any, Any]:
        """Return which samples it holds of some of the group's, and where they are among these; None for none.

        Args:
            rows: which of the group's samples (n).
            size: how many the group has.
        """
        if self.places is None:
            return self.samples.index_select(0, rows), None
        where = torch.full((size,), -1)
        where[rows] = torch.arange(len(rows))
        places = where[self.places]
        kept = places >= 0
        return (self.samples[kept], places[kept]) if kept.any() else (None, None)


@dataclass
class Group:
    """Some of the samples.

    Attributes:
        level: theirs.
        places: which samples they are of those that there are (n).
        step: the one that comes.
        variables: by name.
        outer: its own of the objects from around the function.
        copies: what is to be written back.
    """

    level: Level
    places: Any
    step: int
    variables: dict[str, Any]
    outer: list[Any]
    copies: list[Copy] = field(default_factory=list)


def restored(value: Any, outer: Sequence[Any], new: Sequence[Any], shared: set[int]) -> Any:
    """Let objects from around a function be what they have become; return its result, which may name them."""
    copier = Copier({id(n): old for n, old in zip(new, outer, strict=True)}, lambda k: k, shared)
    inside = [[copier(x) for x in contents(n)[1]] for n in new]  # type: ignore[index]
    for old, n, values in zip(outer, new, inside, strict=True):
        (old.__dict__ if hasattr(old, "__dict__") and not isinstance(old, dict) else old).clear()
        fill(old, n, values)
    return copier(value)


def values_in(variables: dict[str, Any], outer: Any, shared: set[int]) -> list[Any]:
    """Return the tensors, numbers and objects that variables and objects hold, but for those that groups share."""
    seen: dict[int, Any] = {}
    tensors_in([*variables.values(), outer], shared, seen)
    return list(seen.values())


def can_be_written(x: Any) -> bool:
    """Tell whether a mapped function may write to a tensor: it is a sample's, or was made inside."""
    return x._bdim is not None or x._origin is not None
