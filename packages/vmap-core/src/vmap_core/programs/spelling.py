"""How a recorded ATen operation is called again: by PyTorch's Python binding where that means the same.

Calling an ``OpOverload`` costs about a microsecond more than the binding of the same operator.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import EllipsisType, MethodDescriptorType, MethodWrapperType, NoneType, WrapperDescriptorType
from typing import Any

import torch
from torch import Tensor

from ..rulekit.keeping import keep
from ..torch_compat.bindings import MODULES, emitter
from ..torch_compat.dispatcher import BelowAutograd, TorchDispatchMode
from ..torch_compat.mode_stack import DisableTorchFunction
from ..torch_compat.operators import OpOverload

# What an fx graph may hold as it is.
PLAIN = {
    int, float, bool, complex, str, NoneType, EllipsisType, torch.dtype, torch.device, torch.layout, torch.memory_format,
}  # fmt: skip

# Kind of an fx node ("call_function" or "call_method") and its target.
Form = tuple[str, Any]


def _slice(given: Any, nodes: Any) -> Any:
    filled: list[Any] = [*nodes, *[0, None, None, 1][len(nodes) - 1 :]]
    x, dim, bounds = filled[0], filled[1], filled[2:]
    if dim < 0 or any(type(b) not in (int, NoneType) for b in bounds):
        return None
    return x, (*(slice(None),) * dim, slice(bounds[0], bounds[1], None if bounds[2] == 1 else bounds[2]))


def _index(given: Any, nodes: Any) -> Any:
    if any(i is not None and (not i.ndim or i.dtype == torch.uint8) for i in given[1]):
        return None  # a 0-d tensor is read as a number there
    return nodes[0], tuple(slice(None) if i is None else i for i in nodes[1])


# Operations without a binding that subscripts mean.
_SPELLED = {torch.ops.aten.slice.Tensor: _slice, torch.ops.aten.index.Tensor: _index}

_OPERATORS = {Tensor.__getitem__: operator.getitem, Tensor.__setitem__: operator.setitem}


def call_form(func: Any, given: Any, nodes: Any) -> tuple[str, Any, Any]:
    """Return how to call again what ``__torch_function__`` has got.

    Args:
        func: the function.
        given: its arguments, ``(args, kwargs)``.
        nodes: the positional ones, as the graph has them.

    Returns:
        The kind of node, its target, and its positional arguments.
    """
    if isinstance(func, OpOverload):
        spell = _SPELLED.get(func)
        spelled = None if spell is None or given[1] else spell(given[0], nodes)
        return (
            (*form(func, given[0], given_kwargs(func, given[1])), nodes)
            if spelled is None
            else ("call_function", operator.getitem, spelled)
        )
    if func in _OPERATORS:
        return "call_function", _OPERATORS[func], nodes
    if isinstance(func, MethodWrapperType):  # the getter of a property
        return "call_function", getattr, (*nodes, func.__self__.__name__)  # type: ignore[attr-defined]
    if isinstance(func, MethodDescriptorType | WrapperDescriptorType) or func is vars(Tensor).get(name_of(func)):
        return "call_method", name_of(func), nodes
    return "call_function", func, nodes


def given_kwargs(func: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments without those an overload takes as None by default, which bindings need not know."""
    if not isinstance(func, OpOverload):
        return kwargs
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    return {k: v for k, v in kwargs.items() if v is not None or defaults.get(k, v) is not None}


def name_of(func: Any) -> str:
    """Return what messages call a function."""
    if isinstance(func, MethodWrapperType):
        return f"Tensor.{func.__self__.__name__}"  # type: ignore[attr-defined]
    return str(getattr(func, "__name__", func))


class _FirstKernel(Exception):
    """Carries the first operation that a call would run."""


class _Probe(TorchDispatchMode):
    """Stops a call at its first operation, before anything is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _FirstKernel(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler for us."""
        return False


def _first_kernel(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with DisableTorchFunction(), BelowAutograd(), _Probe():
        try:
            call(*args, **kwargs)
        except _FirstKernel as first:
            return first.args
        except Exception:
            return None
    return None


def _same(a: Any, b: Any) -> bool:
    """Compare arguments of two calls, for which a list is as good as a tuple."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


# A number as the other operand becomes a tensor first; so it does in Python's binding.
_AS_TENSOR = {
    getattr(torch.ops.aten, name).Scalar: getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div")
}

_forms: dict[Any, Form] = {}


def form(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Form:
    """Return how to call an operation: a function of ``torch``, a method of Tensor, else the overload itself.

    A binding is taken if, with these arguments, it runs the same first operation on the same arguments; checked once
    for each signature, on tensors that nothing is computed of.
    """
    key = (op, *map(_kind, args), *((k, _kind(v)) for k, v in kwargs.items()))
    known = _forms.get(key)
    if known is None:
        known = _find(op, args, kwargs)
        keep(_forms, key, known)
    return known


def _kind(a: Any) -> Any:
    return (type(a), *map(_kind, a)) if isinstance(a, list | tuple) else type(a)


def _find(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Form:
    if op.namespace == "aten":
        wanted = _first_kernel(op, args, kwargs)
        for kind, target in _candidates(op, args):
            call: Any = target if kind == "call_function" else getattr(Tensor, target)
            found = _first_kernel(call, args, kwargs)
            if wanted is not None and found is not None and _same((_AS_TENSOR.get(op, wanted[0]), *wanted[1:]), found):
                return kind, target
    return "call_function", op


def _candidates(op: OpOverload, args: tuple[Any, ...]) -> list[Form]:
    name = op._schema.name.partition("::")[2]
    found: list[Form] = []
    binding: Any = emitter(op)
    if binding is not op:
        found.append(("call_function", binding))
    if args and isinstance(args[0], Tensor) and callable(getattr(Tensor, name, None)):
        found.append(("call_method", name))
    for module in MODULES:
        binding = getattr(module, name, None)
        if binding is not None:
            found.append(("call_function", binding))
    return found
