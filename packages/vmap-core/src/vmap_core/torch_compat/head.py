"""The head of an object: the word of memory in which PyTorch's C++ finds the tensor behind a Python object.

A tensor's Python object is ``PyObject_HEAD`` and then a pointer to a ``TensorImpl``. C++ that is given an object for which
``isinstance(x, torch.Tensor)`` holds reads that pointer, whatever the object's type. See `levels.head` for what is put there.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
from typing import Any

import torch
from torch import Tensor

from .tensors import make_wrapper

VARIABLE = "VMAP_HEAD"

HEAD = object.__basicsize__
"""Bytes before the head: those of PyObject_HEAD."""

_WORD = ctypes.sizeof(ctypes.c_ssize_t)
_memory = (ctypes.c_ssize_t * (2**60 // _WORD)).from_address(0)  # all of it, by words; nothing is read by making this


def read_head(x: Any) -> int:
    """Return the pointer in an object's head, for an object that has one."""
    return _memory[(id(x) + HEAD) // _WORD]


def write_head(x: Any, pointer: int) -> None:
    """Put a pointer into an object's head, for an object that has one."""
    _memory[(id(x) + HEAD) // _WORD] = pointer


def make_sentinel(cls: type) -> Tensor:
    """Return a tensor of a class with ``__torch_dispatch__`` that has no data, and asks the class for all that C++ may want to know.

    Its dtype is one that few kernels take, and an integer's, since PyTorch's argument parser lets only such tensors pass
    for an ``int``.
    """
    sentinel: Tensor = make_wrapper(
        cls, (), dtype=torch.uint64, dispatch_sizes_strides_policy="sizes", dispatch_device=True, dispatch_layout=True
    )
    torch._C._set_throw_on_mutable_data_ptr(sentinel)
    return sentinel


def why_not(sentinel: Tensor) -> str | None:
    """Return why objects of Python cannot have a head that C++ reads; None if they can.

    Looked up in memory, not asked of C++, which would crash where the answer is no: a tensor has the pointer to its
    implementation in its head; so has an object whose class derives from ``itertools.count``, made with that number.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "safe":
        return f"{VARIABLE}=safe asks for it"
    if wanted not in ("", "fast"):
        raise ValueError(f"{VARIABLE}={wanted}: the choices are 'fast' and 'safe'; without it, 'fast' where that works")
    if platform.python_implementation() != "CPython":
        return f"{platform.python_implementation()} lays objects out in other ways than CPython"

    class Counter(itertools.count):  # type: ignore[type-arg]
        __slots__ = ("__dict__", "__weakref__", "_a")

    if read_head(torch.empty(0)) == 0 or read_head(sentinel) != sentinel._cdata:
        return f"PyTorch {torch.__version__} keeps a tensor's implementation in another place"
    if read_head(Counter(sentinel._cdata)) != sentinel._cdata:
        return f"Python {platform.python_version()} keeps the number of an itertools.count in another place"
    return None
