"""The API of torch.Tensor, on BatchedTensor: each method, operator and property is door 1 for the call."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..torch_compat.mode_stack import pop_mode, push_mode
from .entry import at, dispatch, outside
from .level import NO_KWARGS, Level
from .numpy_operands import is_array, numpy_number, with_array
from .stack import physically
from .tensor import BatchedTensor
from .tensor_api import TensorAPI


def _method(cls: type, func: Any, name: str) -> Callable[..., Any]:
    """Make a method: door 1 for calls on a BatchedTensor.

    As `entry.dispatch`, with the commonest case written out: the innermost mode is a level.
    """

    def method(*args: Any, **kwargs: Any) -> Any:
        try:
            mode = pop_mode()
        except RuntimeError:  # no level is active in this thread
            return outside(func, args, kwargs)
        try:
            run = mode.ways.get(func) if type(mode) is Level else None
            return at(mode, func, args, kwargs) if run is None else run(mode, args, kwargs)
        finally:
            push_mode(mode)

    method.__name__, method.__doc__ = name, f"See torch.Tensor.{name}."
    return method


def _getitem(func: Any) -> Callable[..., Any]:
    """Make ``x[index]`` in the same way."""

    def __getitem__(self: BatchedTensor, index: Any) -> Any:
        try:
            mode = pop_mode()
        except RuntimeError:
            return outside(func, (self, index), NO_KWARGS)
        try:
            run = mode.ways.get(func) if type(mode) is Level else None
            return at(mode, func, (self, index)) if run is None else run(mode, (self, index), NO_KWARGS)
        finally:
            push_mode(mode)

    return __getitem__


def _operator(cls: type, func: Any, name: str) -> Callable[..., Any]:
    """Make an operator in the same way; an operand that is no tensor or number gets NotImplemented, as Python expects."""

    own_operands = frozenset((cls, Tensor, torch.nn.Parameter, int, float))

    def method(self: BatchedTensor, other: Any) -> Any:
        try:
            mode = pop_mode()
        except RuntimeError:
            operand = _operand(cls, other)
            return NotImplemented if operand is None else outside(func, (self, operand), NO_KWARGS)
        try:
            if type(mode) is Level and type(other) in own_operands:
                run = mode.ways.get(func)
                if run is not None:
                    return run(mode, (self, other), NO_KWARGS)
            operand = _operand(cls, other)
            if operand is not None:
                return at(mode, func, (self, operand))
            if is_array(other) and name[2:-2] in _OPERATORS:
                return at(mode, with_array, (self, other, name))
            return NotImplemented
        finally:
            push_mode(mode)

    method.__name__ = name
    return method


def _swapped(cls: type, func: Any, name: str) -> Callable[..., Any]:
    """Make a reflected operator: the other operand is the first."""

    def method(self: BatchedTensor, other: Any) -> Any:
        operand = _operand(cls, other)
        return NotImplemented if operand is None else dispatch(func, (operand, self))

    method.__name__ = name
    return method


def _operand(cls: type, other: Any) -> Any:
    """Return what the other operand is to a tensor: itself, or the Python number for one of NumPy's; None for anything else."""
    return other if isinstance(other, _OPERANDS) or type(other) is cls else numpy_number(other)


_OPERANDS = (Tensor, int, float, complex, bool, torch.SymInt, torch.SymFloat, torch.SymBool)

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
    "__reduce__", "__str__", "__doc__", "__module__", "__torch_dispatch__",
    "__cuda_array_interface__", "__slots__", "__annotations__", "__array_priority__", "__abstractmethods__",
    "_make_subclass", "_make_wrapper_subclass", "_make_dtensor", "__rtruediv__", "__rdiv__",
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
    "get_device", "is_pinned", "is_shared", "_is_view", "_is_zerotensor",
)  # fmt: skip


def _metadata_property(name: str) -> property:
    get = operator.attrgetter(name)

    def fget(self: BatchedTensor) -> Any:
        return physically(get, self._value)

    def fset(self: BatchedTensor, value: Any) -> None:
        dispatch(getattr(Tensor, name).__set__, (self, value))

    return property(fget, fset, doc=f"See torch.Tensor.{name}.")


def _metadata_method(name: str) -> Callable[..., Any]:
    def method(self: BatchedTensor, *args: Any, **kwargs: Any) -> Any:
        return physically(operator.methodcaller(name, *args, **kwargs), self._value)

    method.__name__ = name
    return method


def _rtruediv(self: BatchedTensor, other: Any) -> Any:
    """``other / self``, as Tensor computes it."""
    operand = _operand(type(self), other)
    return NotImplemented if operand is None else self.reciprocal() * operand


def generate(cls: type[BatchedTensor]) -> None:
    """Give BatchedTensor the whole API of torch.Tensor: what it answers itself, and door 1 for the rest."""
    for name, member in vars(TensorAPI).items():
        if name not in _OF_CLASSES:
            setattr(cls, name, member)
    for name, func in _OPERATORS.items():
        setattr(cls, f"__{name}__", _operator(cls, func, f"__{name}__"))
    for name, func in _REFLECTED.items():
        setattr(cls, f"__r{name}__", _operator(cls, func, f"__r{name}__"))
    for name, func in _REFLECTED_SWAPPED.items():
        setattr(cls, f"__r{name}__", _swapped(cls, func, f"__r{name}__"))
    for name, target in _INPLACE.items():
        setattr(cls, f"__i{name}__", _operator(cls, getattr(Tensor, target), f"__i{name}__"))
    for name, func in _UNARY.items():
        setattr(cls, f"__{name}__", _method(cls, func, f"__{name}__"))
    setattr(cls, "__getitem__", _getitem(Tensor.__getitem__))  # noqa: B010
    # As it is found for the class, without the binding to it that C++ would ask for on every call.
    setattr(cls, "__torch_function__", TensorAPI.__torch_function__)  # noqa: B010
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
            setattr(cls, name, _property(cls, attribute, name))
        elif callable(attribute):
            setattr(cls, name, _method(cls, attribute, name))


_OF_CLASSES = {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__"}


def _property(cls: type, descriptor: Any, name: str) -> property:
    get, set_ = (_method(cls, accessor, name) for accessor in (descriptor.__get__, descriptor.__set__))
    return property(get, set_, doc=f"See torch.Tensor.{name}.")


generate(BatchedTensor)
