"""Subclasses of Tensor as inputs: a sample is no instance of them, so it has Tensor's methods."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError, user_location
from ..levels.tensor import BatchedTensor

# What says how an object is made, shown, copied or kept, and what PyTorch asks of the physical tensor.
_HARMLESS = frozenset(dir(object)) | {
    "__torch_function__", "__torch_dispatch__", "__dict__", "__weakref__", "__slots__", "__annotations__", "__module__", "__doc__",
    "__deepcopy__", "__copy__", "__setstate__", "__getstate__", "__reduce_ex__", "__cuda_array_interface__",
}  # fmt: skip


@functools.lru_cache(1024)
def overridden(kind: Any) -> tuple[str, ...]:
    """Return the names of the methods and properties of Tensor that a subclass from outside PyTorch defines anew.

    Nothing, where it has a ``__torch_function__``: what operations do to it is said there, and asked for the physical tensor.

    >>> class Median(torch.Tensor):
    ...     def mean(self):
    ...         return self.median()
    >>> overridden(Median)
    ('mean',)
    """
    between = [
        base for base in kind.__mro__[: kind.__mro__.index(Tensor)] if base.__module__.partition(".")[0] != "torch"
    ]
    if any("__torch_function__" in vars(base) for base in between):
        return ()
    return tuple(n for base in between for n in vars(base) if n not in _HARMLESS and hasattr(torch.Tensor, n))


def refuse_overriding(x: Any) -> None:
    """Raise if a tensor to be mapped is of a subclass that defines Tensor's methods anew.

    Raises:
        UnsupportedError: it is.
    """
    kind: Any = type(x)
    if kind is not BatchedTensor and (names := overridden(kind)):
        raise UnsupportedError(
            f"vmap: an input, at {user_location()}, is a {kind.__name__}, a subclass of Tensor that defines "
            f"{', '.join(names[:3])} anew. A sample is a plain tensor, and would have Tensor's. Instead: pass "
            f"x.as_subclass(torch.Tensor), and use what {kind.__name__} defines outside the mapped function."
        )
