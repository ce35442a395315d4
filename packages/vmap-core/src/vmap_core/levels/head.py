"""What C++ finds in a BatchedTensor.

Note [What C++ finds in a BatchedTensor]: a BatchedTensor is a plain object that passes ``isinstance(x, torch.Tensor)``, and
C++ that asks this goes on to read a tensor's implementation in the object's head. So there is one. A batched tensor has
that of the **sentinel**, one tensor for all of them, which answers what PyTorch's argument parser asks of an argument that
may be a number (has it no dims, and one element?), so that ``torch.full((3,), x)`` gets through to the level, and raises
UnsupportedError for everything else. An unbatched one has that of its value: C++ may use it as it is, inside the mapped
function and after it. The class derives from ``itertools.count``, since that lets a class in Python say what is in the head.

Where this does not work (`torch_compat.head.why_not`), or is not wanted (``VMAP_HEAD=safe``), a BatchedTensor is a subclass
of Tensor, each a sentinel of its own: slower to make, and otherwise the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..errors import EscapedTensorError, OpaqueCodeError, VmapError, user_location
from ..torch_compat.head import make_sentinel, read_head, why_not, write_head
from ..torch_compat.mode_stack import disabled_torch_function_impl
from ..torch_compat.trees import tree_map
from .level import current_levels


class _Elements:
    """How many elements a batched tensor has for C++: it is equal to one, and is no number.

    PyTorch calls what represents a number that is not known yet a node; these are its methods.
    """

    def is_int(self) -> bool:
        """Say that it stands for an int."""
        return True

    def is_bool(self) -> bool:
        """Say that it stands for a bool, as the answer to a question."""
        return True

    def is_constant(self) -> bool:
        """Say that it is not known."""
        return False

    is_float = is_nested_int = is_constant

    def is_symbolic(self) -> bool:
        """Say that it is not known."""
        return True

    def maybe_as_int(self) -> None:
        """Return no number."""

    def wrap_int(self, n: int) -> _Elements:
        """Return a number to compare with: the parser asks for one."""
        return self

    def eq(self, other: Any) -> _Elements:
        """Compare."""
        return self

    def guard_or_false(self, file: str, line: int) -> bool:
        """Answer a comparison."""
        return True

    def __getattr__(self, name: str) -> Any:
        raise refused("aten::numel")


T = TypeVar("T")

_ANSWERS = {"aten::dim": 0, "aten::sym_numel": torch.SymInt(_Elements())}  # asked of what may be a number


def refuse(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """Answer C++ that uses a batched tensor as if it had data: a ``__torch_dispatch__``.

    Raises:
        UnsupportedError: always, but for the few questions that have an answer.
        EscapedTensorError: no vmap is running in this thread.
    """
    name = func._schema.name if hasattr(func, "_schema") else str(func)
    if name in _ANSWERS:
        return _ANSWERS[name]
    raise refused(name)


def refused(name: str) -> VmapError:
    """Make the error for C++ that asks something of a batched tensor."""
    levels = current_levels()
    if not levels:
        return EscapedTensorError(
            f"vmap: {name} was called from C++ at {user_location()} on a batched tensor, and no vmap is running there: "
            f"Either your tensor may have escaped from inside a function being vmapped and this is a user error "
            f"(see https://pytorch.org/functorch/stable/ux_limitations.html), or it is used in another thread, or C++ has "
            f"handed it to Python, which it cannot. Instead: return it from the mapped function; wrap a function that goes "
            f"through C++ in vmap_core.sequential_vmap."
        )
    constructor = _CONSTRUCTOR if name in ("aten::alias", "aten::detach") else ""
    return OpaqueCodeError(
        f"vmap: C++ asked {name} of a batched tensor, at {user_location()}, in vmap of {levels[-1].name!r}: code in C++ that "
        f"PyTorch does not hand over, such as a pybind11 extension, cannot be mapped. {constructor}Instead: register it as an "
        f"operator (torch.library.custom_op), or wrap the function that calls it in vmap_core.sequential_vmap, which loops "
        f"over the samples, or in vmap_core.custom_vmap with a rule of your own."
    )


_CONSTRUCTOR = (
    "For a constructor, such as torch.Tensor(x) or Subclass(x), write x.detach() or x.as_subclass(Subclass). "
)


class Sentinel(Tensor):
    """The class of the sentinel."""

    __torch_function__: Any = disabled_torch_function_impl
    __torch_dispatch__ = classmethod(refuse)  # type: ignore[assignment]


_sentinel = make_sentinel(Sentinel)

SAFE = why_not(_sentinel)
"""Why BatchedTensor is a subclass of Tensor; None where it is a plain object with a head."""

BATCHED: int = _sentinel._cdata
"""The head of a batched tensor."""

if TYPE_CHECKING:

    class Base:
        """What BatchedTensor derives from."""

    def new(cls: type[T], head: int) -> T:
        """Return an object of a class that derives from Base, with a head."""

    def set_head(x: Any, pointer: int) -> None:
        """Put a pointer into a BatchedTensor's head."""

    def head_of(x: Any) -> int:
        """Return what is in the head of a tensor or a BatchedTensor."""

elif SAFE is None:

    class Base(itertools.count):
        """An object with a head, made with the pointer to put there."""

        __slots__ = ("__dict__", "__weakref__")
        __next__ = None

    new = itertools.count.__new__
    set_head = write_head
    head_of = read_head

else:
    # What C++ asks of a tensor without data, and no operator of PyTorch answers.
    _ABOUT_THE_VALUE: dict[str, Callable[..., Any]] = {
        "aten::size": Tensor.size, "aten::sym_size": Tensor.size, "aten::stride": Tensor.stride,
        "aten::sym_stride": Tensor.stride, "aten::numel": Tensor.numel, "aten::sym_numel": Tensor.numel, "aten::dim": Tensor.dim,
        "aten::storage_offset": Tensor.storage_offset, "aten::sym_storage_offset": Tensor.storage_offset,
        "aten::is_contiguous": lambda x, *_: x.is_contiguous(), "prim::device": lambda x: x.device, "prim::layout": lambda x: x.layout,
    }  # fmt: skip

    class Base(Tensor):
        """A subclass of Tensor; it makes no difference with which head."""

        __slots__ = ()

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
            """Let C++ use the value of what is not batched."""
            batched = []

            def value(x: Any) -> Any:
                while type(x) is cls and x._bdim is None:
                    x = x._value
                batched.extend([x] if type(x) is cls else [])
                return x

            args, kwargs = tree_map(value, (args, kwargs or {}))
            if batched:
                return refuse(cls, func, types, args)
            about = _ABOUT_THE_VALUE.get(func._schema.name)
            return func(*args, **kwargs) if about is None else about(*args)

    def new(cls: type, head: int) -> Any:
        """Return a sentinel of a class."""
        return make_sentinel(cls)

    def set_head(x: Any, pointer: int) -> None:
        """Do nothing: see `Base`."""

    def head_of(x: Any) -> int:
        """Return any head: see `Base`."""
        return 0
