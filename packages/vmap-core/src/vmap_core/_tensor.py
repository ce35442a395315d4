"""`BatchedTensor`: what a mapped function sees, and the whole `torch.Tensor` API on it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _dispatch, _node, _read
from ._level import NO_KWARGS, Level, pop_level, push_level

if TYPE_CHECKING:
    from ._ownership import Origin


class _Head:
    """Puts ``_level`` first in a BatchedTensor's memory, where C++ looks for a tensor's implementation.

    See Note [What C++ reads in a BatchedTensor] in `_level`.
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
            one by a write (see `_ownership`).
    """

    __slots__ = ("__dict__", "__weakref__", "_bdim", "_origin", "_value")

    _value: Any
    _bdim: int | None
    _level: Level
    _origin: Origin | None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The names of torch.Tensor, which `_generate` adds."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        """Pass for a Tensor while alive; a dead one must not, since C++ trusts isinstance."""
        return Tensor if self._level.active else BatchedTensor

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Reached only when no level on the stack took the call: the tensor has escaped."""
        return _dispatch.outside(func, args, kwargs or {})

    # Metadata: logical, computed here, never through a rule.

    @property
    def shape(self) -> torch.Size:
        """The logical shape, without the batch dim."""
        shape = _dispatch.physically(_get_shape, self._value)
        d = self._bdim
        if not d:
            return shape if d is None else shape[1:]
        return torch.Size(shape[:d] + shape[d + 1 :])

    def size(self, dim: int | None = None) -> Any:
        """Return the logical shape, or one of its entries."""
        shape = self.shape
        return shape if dim is None else shape[_logical(dim, len(shape))]

    @property
    def ndim(self) -> int:
        """The logical rank."""
        return _dispatch.physically(_get_ndim, self._value) - (self._bdim is not None)

    def dim(self) -> int:
        """Return the logical rank."""
        return self.ndim

    ndimension = dim

    def numel(self) -> int:
        """Return the number of logical elements."""
        return self.shape.numel()

    nelement = numel

    def __len__(self) -> int:
        """Return the size of the first logical dim."""
        if not self.ndim:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def stride(self, dim: int | None = None) -> Any:
        """Return the strides of the logical tensor."""
        strides = _dispatch.physically(_get_stride, self._value)
        if self._bdim is not None:
            strides = strides[: self._bdim] + strides[self._bdim + 1 :]
        return strides if dim is None else strides[_logical(dim, self.ndim)]

    def is_contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
        """Tell whether each sample's tensor is contiguous."""
        return contiguous_strides(self.shape, self.stride(), memory_format)

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's tensor."""
        return self.numel() * self.element_size()

    @property
    def grad_fn(self) -> Any:
        """The node of the graph that made the physical tensor; its hooks would see all samples at once."""
        return _node.of_sample(_dispatch.physically(_get_grad_fn, self._value))

    # Reads of the value: all of them through one door.

    def item(self) -> Any:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return _read.item(self, "item()")

    def tolist(self) -> Any:
        """Read the values, if every sample shares them; else raise DataDependentError."""
        return _read.tolist(self)

    def numpy(self, *, force: bool = False) -> Any:
        """Return the array of a tensor that is not batched; else raise DataDependentError."""
        return _read.value(self, "numpy()").numpy(force=force)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the array of a tensor that is not batched; else raise DataDependentError."""
        return _read.value(self, "numpy()").__array__(*args, **kwargs)

    def __bool__(self) -> bool:
        """Read the truth value, if every sample shares it; else raise DataDependentError."""
        return _read.truth(self)

    def __int__(self) -> int:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return int(_read.item(self, "int()"))

    def __index__(self) -> int:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return _read.index(self)

    def __float__(self) -> float:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return float(_read.item(self, "float()"))

    def __complex__(self) -> complex:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return complex(_read.item(self, "complex()"))

    def __contains__(self, element: Any) -> bool:
        """Ask whether an element is among the values."""
        return bool((self == element).any())

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the first logical dim."""
        if not self.ndim:
            raise TypeError("iteration over a 0-d tensor")
        return iter(self.unbind(0))

    def __reversed__(self) -> Any:
        """Return the tensor flipped in its first dim."""
        return self.flip(0) if self.ndim else self

    def __hash__(self) -> int:
        """Hash by identity, as tensors do."""
        return id(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Show the level, the batch dim and the physical value."""
        return _read.describe(self)

    def __format__(self, spec: str) -> str:
        """Format as `repr`; a format of the value would be a read."""
        return repr(self) if not spec else format(_read.item(self, "format()"), spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: a BatchedTensor means nothing outside its level."""
        raise _read.unsupported(self, "pickle or copy.copy", "return it from the mapped function")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Clone, for an unbatched or leaf tensor, as Tensor does."""
        result = self.detach().clone()
        return result.requires_grad_() if self.requires_grad else result


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


_get_shape = operator.attrgetter("shape")
_get_grad_fn = operator.attrgetter("grad_fn")
_get_ndim = operator.attrgetter("ndim")
_get_stride = operator.methodcaller("stride")


def _logical(dim: int, ndim: int) -> int:
    """Check a dim against the logical rank, with the texts of PyTorch's own errors."""
    if not ndim:
        raise IndexError(f"Dimension specified as {dim} but tensor has no dimensions")
    if not -ndim <= dim < ndim:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-ndim}, {ndim - 1}], but got {dim})")
    return dim % ndim


def contiguous_strides(shape: torch.Size, strides: tuple[int, ...], fmt: torch.memory_format) -> bool:
    """Tell whether strides are those of a contiguous tensor in the given memory format."""
    order = {
        torch.channels_last: (0, 2, 3, 1),
        torch.channels_last_3d: (0, 2, 3, 4, 1),
    }.get(fmt, tuple(range(len(shape))))
    if len(order) != len(shape):
        return False
    expected = 1
    for d in reversed(order):
        if shape[d] != 1 and strides[d] != expected and shape.numel():
            return False
        expected *= shape[d]
    return True


def _method(func: Any, name: str) -> Callable[..., Any]:
    """Make a method: door 1 for calls on a BatchedTensor.

    As `_dispatch.dispatch`, with the commonest case written out: the innermost mode is a level, and has a plan.
    """
    alone = (func, BatchedTensor)

    def method(*args: Any, **kwargs: Any) -> Any:
        try:
            mode = pop_level()
        except RuntimeError:  # no level is active in this thread
            return _dispatch.outside(func, args, kwargs)
        try:
            if not kwargs and type(mode) is Level:
                n = len(args)
                if n == 1:
                    key: Any = alone
                elif n == 2:
                    key = (func, BatchedTensor, type(args[1]))
                else:
                    key = (func, *map(type, args))
                plan = mode.plans.get(key)
                if plan is not None:
                    return plan(mode, args, NO_KWARGS)
            return _dispatch.at(mode, func, args, kwargs)
        finally:
            push_level(mode)

    method.__name__, method.__doc__ = name, f"See torch.Tensor.{name}."
    return method


def _operator(func: Any, name: str) -> Callable[..., Any]:
    """Make an operator in the same way; an operand that is no tensor or number gets NotImplemented, as Python expects."""

    def method(self: BatchedTensor, other: Any) -> Any:
        try:
            mode = pop_level()
        except RuntimeError:
            return _dispatch.outside(func, (self, other), NO_KWARGS) if isinstance(other, _OPERANDS) else NotImplemented
        try:
            if type(mode) is Level:
                plan = mode.plans.get((func, BatchedTensor, type(other)))
                if plan is not None:
                    return plan(mode, (self, other), NO_KWARGS)
            return _dispatch.at(mode, func, (self, other)) if isinstance(other, _OPERANDS) else NotImplemented
        finally:
            push_level(mode)

    method.__name__ = name
    return method


def _swapped(func: Any, name: str) -> Callable[..., Any]:
    """Make a reflected operator: the other operand is the first."""

    def method(self: BatchedTensor, other: Any) -> Any:
        return _dispatch.dispatch(func, (other, self)) if isinstance(other, _OPERANDS) else NotImplemented

    method.__name__ = name
    return method


_OPERANDS = (BatchedTensor, Tensor, int, float, complex, bool, torch.SymInt, torch.SymFloat, torch.SymBool)

_OPERATORS = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "truediv": torch.div,
    "floordiv": torch.floor_divide, "mod": torch.remainder, "pow": torch.pow, "matmul": torch.matmul,
    "and": torch.Tensor.__and__, "or": torch.Tensor.__or__, "xor": torch.Tensor.__xor__,
    "lshift": torch.Tensor.__lshift__, "rshift": torch.Tensor.__rshift__,
    "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge,
}  # fmt: skip
_REFLECTED = {
    "add": torch.add, "sub": torch.rsub, "mul": torch.mul, "and": torch.bitwise_and, "or": torch.bitwise_or,
    "xor": torch.bitwise_xor,
}  # fmt: skip
_REFLECTED_SWAPPED = {
    "floordiv": torch.floor_divide, "mod": torch.remainder, "pow": torch.pow, "matmul": torch.matmul,
    "lshift": torch.bitwise_left_shift, "rshift": torch.bitwise_right_shift,
}  # fmt: skip
_INPLACE = {
    "add": "add_", "sub": "sub_", "mul": "mul_", "truediv": "div_", "floordiv": "floor_divide_",
    "mod": "remainder_", "pow": "pow_", "and": "bitwise_and_", "or": "bitwise_or_", "xor": "bitwise_xor_",
    "lshift": "__ilshift__", "rshift": "__irshift__",
}  # fmt: skip
_UNARY = {"neg": torch.neg, "pos": torch.positive, "abs": torch.abs, "invert": torch.bitwise_not}

# Python machinery that BatchedTensor takes from `object`, or that torch.Tensor leaves to C++ internals.
_NOT_GENERATED = {
    "__class__", "__dict__", "__weakref__", "__new__", "__init__", "__del__", "__getattribute__", "__setattr__",
    "__delattr__", "__init_subclass__", "__subclasshook__", "__sizeof__", "__dir__", "__getstate__", "__setstate__",
    "__reduce__", "__str__", "__doc__", "__module__", "__torch_dispatch__", "__dlpack__", "__dlpack_device__",
    "__cuda_array_interface__", "__slots__", "__annotations__", "__array_priority__", "__abstractmethods__",
    "_make_subclass", "_make_wrapper_subclass", "_make_dtensor", "as_subclass", "__rtruediv__", "__rdiv__",
    "__class_getitem__", "_is_param", "_reduce_ex_internal",
}  # fmt: skip


# Facts that are the same for the physical tensor: read off it, without a rule.
METADATA_PROPERTIES = (
    "dtype", "device", "layout", "requires_grad", "is_leaf", "itemsize", "is_cpu", "is_cuda", "is_ipu",
    "is_maia", "is_meta", "is_mkldnn", "is_mps", "is_mtia", "is_nested", "is_quantized", "is_sparse",
    "is_sparse_csr", "is_vulkan", "is_xla", "is_xpu", "_version", "output_nr", "retains_grad", "name",
)  # fmt: skip
METADATA_METHODS = (
    "is_complex", "is_floating_point", "is_conj", "is_neg", "is_inference", "is_signed", "element_size",
    "get_device", "is_pinned", "is_shared", "_is_view", "_is_zerotensor", "storage_offset",
)  # fmt: skip


def _metadata_property(name: str) -> property:
    get = operator.attrgetter(name)

    def fget(self: BatchedTensor) -> Any:
        return _dispatch.physically(get, self._value)

    def fset(self: BatchedTensor, value: Any) -> None:
        _dispatch.dispatch(getattr(Tensor, name).__set__, (self, value))

    return property(fget, fset, doc=f"See torch.Tensor.{name}.")


def _metadata_method(name: str) -> Callable[..., Any]:
    def method(self: BatchedTensor, *args: Any, **kwargs: Any) -> Any:
        return _dispatch.physically(operator.methodcaller(name, *args, **kwargs), self._value)

    method.__name__ = name
    return method


def _rtruediv(self: BatchedTensor, other: Any) -> Any:
    """``other / self``, as Tensor computes it."""
    return self.reciprocal() * other if isinstance(other, _OPERANDS) else NotImplemented


def _generate() -> None:
    """Give BatchedTensor every name of torch.Tensor that it does not define itself."""
    cls = BatchedTensor
    for name, func in _OPERATORS.items():
        setattr(cls, f"__{name}__", _operator(func, f"__{name}__"))
    for name, func in _REFLECTED.items():
        setattr(cls, f"__r{name}__", _operator(func, f"__r{name}__"))
    for name, func in _REFLECTED_SWAPPED.items():
        setattr(cls, f"__r{name}__", _swapped(func, f"__r{name}__"))
    for name, target in _INPLACE.items():
        setattr(cls, f"__i{name}__", _operator(getattr(Tensor, target), f"__i{name}__"))
    for name, func in _UNARY.items():
        setattr(cls, f"__{name}__", _method(func, f"__{name}__"))
    for name in ("__rtruediv__", "__rdiv__"):
        setattr(cls, name, _rtruediv)
    setattr(cls, "__array_priority__", Tensor.__array_priority__)  # noqa: B010
    for name in METADATA_PROPERTIES:
        setattr(cls, name, _metadata_property(name))
    for name in METADATA_METHODS:
        setattr(cls, name, _metadata_method(name))
    own = set(vars(cls))
    for name in dir(Tensor):
        if name in own or name in _NOT_GENERATED:
            continue
        attribute = getattr(Tensor, name)
        if hasattr(attribute, "__set__") or isinstance(attribute, property):
            setattr(cls, name, _property(attribute, name))
        elif callable(attribute):
            setattr(cls, name, _method(attribute, name))


def _property(descriptor: Any, name: str) -> property:
    get, set_ = (_method(accessor, name) for accessor in (descriptor.__get__, descriptor.__set__))
    return property(get, set_, doc=f"See torch.Tensor.{name}.")


_generate()
