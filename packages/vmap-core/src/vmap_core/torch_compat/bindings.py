"""How to call an operation on physical values: by the binding that costs least."""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any

import torch

from .operators import OpOverload, overload_of, overloads_of


def emitter(func: Any) -> Callable[..., Any]:
    """Return how to call an operation on physical values, which may be BatchedTensors of an outer level.

    A builtin costs about 0.4 microseconds less than the overload, so it is taken where it means the same.
    """
    func = overload_of(func)
    if isinstance(func, OpOverload):
        name = func._schema.name.partition("::")[2]
        public = getattr(torch, name, None)
        if func.namespace != "aten" or name in _NOT_THE_OVERLOAD:
            return func
        if type(public) is not BuiltinFunctionType and _is_the_only_one(func):
            public = next((getattr(m, name) for m in MODULES if hasattr(m, name)), None)
        return public if type(public) is BuiltinFunctionType else func
    if not isinstance(func, MethodDescriptorType | WrapperDescriptorType | MethodWrapperType):
        return func
    name = func.__name__
    if name == "__get__":
        name = func.__self__.__name__  # type: ignore[union-attr]
        return lambda self: getattr(self, name)
    if name == "__set__":
        name = func.__self__.__name__  # type: ignore[union-attr]
        return lambda self, value: setattr(self, name, value)
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def _is_the_only_one(op: OpOverload) -> bool:
    """Tell whether an overload writes nothing, and no other does that: else its arguments would choose."""
    return [o for o in overloads_of(op.overloadpacket) if not o._schema.is_mutable] == [op]


# Builtins that do more, or take other arguments, than the overload of the same name.
_NOT_THE_OVERLOAD = {
    "index_put",
    "index_put_",
    "dropout",
    "where",
    "scalar_tensor",
    "conv1d",
    "range",
    "full",
    "normal",
    "to_dlpack",
}

MODULES: list[Any] = [getattr(torch._C, name) for name in ("_nn", "_linalg", "_special", "_fft")]
"""Where further bindings are, under the operators' names."""
