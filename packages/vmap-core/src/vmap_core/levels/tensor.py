"""`BatchedTensor`: what a mapped function sees. Its API, that of `torch.Tensor`, is added by `methods`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .head import BATCHED, Base, head_of, new, set_head
from .level import Level

if TYPE_CHECKING:
    from .ownership import Origin


class Exact:
    """The type of `EXACT`."""


EXACT = Exact()
"""The origin of a tensor whose batch dim is not the first, and whose samples have the memory layout of the loop's.

See Note [The layout invariant] in `levels.layout`.
"""


class BatchedTensor(Base):
    """One tensor per sample, held as one physical tensor.

    A plain object, not a Tensor subclass (that would cost microseconds an operation); it has every method of
    ``torch.Tensor`` and passes ``isinstance(x, torch.Tensor)``. It is made with what C++ is to find in it: see Note [What
    C++ finds in a BatchedTensor] in `levels.head`.

    Attributes:
        _value: the physical tensor, or a BatchedTensor of a level further out.
        _bdim: index of the batch dim in ``_value``; None where all samples share one value.
        _level: the `Level` it belongs to.
        _origin: of an unbatched tensor made inside the mapped function, which may be promoted to a batched one by a
            write (see `levels.ownership`); of a batched one perhaps `EXACT`.
        _rank: the number of dims of ``_value``, once somebody has asked (see `rank_of`); 0 before.
    """

    __slots__ = ("_bdim", "_level", "_origin", "_rank", "_value")

    __class__ = Tensor  # type: ignore[assignment]

    _value: Any
    _bdim: int | None
    _level: Level
    _origin: Origin | Exact | None
    _rank: int

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The names of torch.Tensor, which `levels.methods` adds."""

    def __new__(cls, *args: Any) -> Any:
        """Do what ``torch.Tensor(*args)`` does: a function may ask for it by ``type(x)(...)``; `make_batched` makes these."""
        return args[0].view_as(args[0]) if args and type(args[0]) is cls else Tensor(*args)

    def __hash__(self) -> int:
        """Hash by identity, as tensors do."""
        return id(self)


batched_objects = itertools.starmap(new, itertools.repeat((BatchedTensor, BATCHED)))
"""Gives new objects with the head of a batched tensor, which takes `next` less than a call of ``new``."""


def make_batched(value: Any, bdim: int | None, level: Level, origin: Origin | Exact | None = None) -> BatchedTensor:
    """Wrap a physical tensor; rules return plain pairs instead, the dispatcher wraps them.

    A function, since Python takes longer for a class with ``__init__``.
    """
    x: BatchedTensor = new(BatchedTensor, head_of(value)) if bdim is None else next(batched_objects)
    x._value = value
    x._bdim = bdim
    x._level = level
    x._origin = origin
    x._rank = 0
    return x


def become(x: BatchedTensor, value: Any, bdim: int | None, origin: Origin | Exact | None = None) -> None:
    """Give a BatchedTensor another physical tensor, in place."""
    set_head(x, head_of(value) if bdim is None else BATCHED)
    x._value, x._bdim, x._origin, x._rank = value, bdim, origin, 0


def rank_of(x: BatchedTensor) -> int:
    """Return the number of dims of the physical tensor, and remember it: PyTorch takes longer to tell than Python to compare."""
    x._rank = rank = x._value.ndim
    return rank
