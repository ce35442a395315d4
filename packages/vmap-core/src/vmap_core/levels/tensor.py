"""`BatchedTensor`: what a mapped function sees. Its API, that of `torch.Tensor`, is added by `methods`."""

from __future__ import annotations

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
    """

    __slots__ = ("_bdim", "_level", "_origin", "_value")

    __class__ = Tensor  # type: ignore[assignment]

    _value: Any
    _bdim: int | None
    _level: Level
    _origin: Origin | Exact | None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The names of torch.Tensor, which `levels.methods` adds."""

    def __new__(cls, *args: Any) -> Any:
        """Do what ``torch.Tensor(*args)`` does: a function may ask for it by ``type(x)(...)``; `make_batched` makes these."""
        return args[0].view_as(args[0]) if args and type(args[0]) is cls else Tensor(*args)

    def __hash__(self) -> int:
        """Hash by identity, as tensors do."""
        return id(self)


def make_batched(value: Any, bdim: int | None, level: Level, origin: Origin | Exact | None = None) -> BatchedTensor:
    """Wrap a physical tensor; rules return plain pairs instead, the dispatcher wraps them.

    A function, since Python takes longer for a class with ``__init__``.
    """
    x = new(BatchedTensor, head_of(value) if bdim is None else BATCHED)
    x._value = value
    x._bdim = bdim
    x._level = level
    x._origin = origin
    return x


def become(x: BatchedTensor, value: Any, bdim: int | None, origin: Origin | Exact | None = None) -> None:
    """Give a BatchedTensor another physical tensor, in place."""
    set_head(x, head_of(value) if bdim is None else BATCHED)
    x._value, x._bdim, x._origin = value, bdim, origin
