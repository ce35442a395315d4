"""`BatchedTensor`: what a mapped function sees. Its API, that of `torch.Tensor`, is added by `methods`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .level import Level

if TYPE_CHECKING:
    from .ownership import Origin


class _Head:
    """Puts ``_level`` first in a BatchedTensor's memory, where C++ looks for a tensor's implementation.

    See Note [What C++ reads in a BatchedTensor] in `levels.level`.
    """

    __slots__ = ("_level",)


class BatchedTensor(_Head):
    """One tensor per sample, held as one physical tensor.

    A plain object, not a Tensor subclass (that would cost microseconds an operation); it has every method of
    ``torch.Tensor`` and passes ``isinstance(x, torch.Tensor)`` while its level is active.

    Attributes:
        _value: the physical tensor, or a BatchedTensor of a level further out.
        _bdim: index of the batch dim in ``_value``; None where all samples share one value.
        _level: the `Level` it belongs to.
        _origin: set on an unbatched tensor made inside the mapped function, which may be promoted to a batched
            one by a write (see `levels.ownership`).
    """

    __slots__ = ("__dict__", "__weakref__", "_bdim", "_origin", "_value")

    _value: Any
    _bdim: int | None
    _level: Level
    _origin: Origin | None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The names of torch.Tensor, which `levels.methods` adds."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        """Pass for a Tensor while alive; a dead one must not, since C++ trusts isinstance."""
        return Tensor if self._level.active else BatchedTensor

    def __hash__(self) -> int:
        """Hash by identity, as tensors do."""
        return id(self)


def make_batched(value: Any, bdim: int | None, level: Level, origin: Origin | None = None) -> BatchedTensor:
    """Wrap a physical tensor; rules return plain pairs instead, the dispatcher wraps them.

    A function, since Python takes longer for a class with ``__init__``.
    """
    x = BatchedTensor()
    x._value = value
    x._bdim = bdim
    x._level = level
    x._origin = origin
    return x
