"""Door 1: every PyTorch call a mapped function makes, from the call to its rule.

`call` looks a *plan* up by the function and the types of its arguments, and runs it. A plan is made on the first
such call (`make_plan`) and closes over everything that follows from the types alone: the overload, its rule, how to
bring the arguments in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any

import torch
from torch._C import _len_torch_function_stack
from torch._C import _pop_torch_function_stack as pop_level
from torch._C import _push_on_torch_function_stack as push_level
from torch._ops import OpOverload

from . import _binding
from ._errors import EscapedTensorError, user_location
from ._level import NO_KWARGS, Level
from ._registry import Table
from ._tensor import BatchedTensor
from .torch_compat.versions import skip_one_hop

Plan = Callable[[Level, tuple[Any, ...], dict[str, Any]], Any]


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KWARGS) -> Any:
    """Run a call on BatchedTensors at the innermost mode."""
    try:
        mode = pop_level()
    except RuntimeError:  # no level is active in this thread
        return outside(func, args, kwargs)
    try:
        return at(mode, func, args, kwargs)
    finally:
        push_level(mode)


def at(mode: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KWARGS) -> Any:
    """Run a call at a mode that has been taken off the stack: a level, or a mode of the user's own."""
    if type(mode) is Level:
        return call(mode, func, args, kwargs)
    return mode.__torch_function__(emitter(func), (torch.Tensor,), args, kwargs)


def call(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one call at a level that has been taken off the stack.

    Args:
        level: the innermost level.
        func: what was called: a builtin, a method of Tensor, a Python function, an ``OpOverload``.
        args: its positional arguments, BatchedTensors among them.
        kwargs: its keyword arguments.
    """
    if kwargs:
        key: Any = (func, *map(type, args), *kwargs, *map(type, kwargs.values()))
    else:
        key = (func, type(args[0]), type(args[1])) if len(args) == 2 else (func, *map(type, args))
    plan = level.plans.get(key)
    if plan is None:
        plan = level.table.make(level, key, func, args, kwargs)
    return plan(level, args, kwargs)


def call_inherent(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call without the rule for the function itself; for such a rule, to pass a call on."""
    elements = tuple(map(_element_types, (*args, *kwargs.values())))
    key: Any = (call_inherent, func, len(args), *kwargs, *elements)
    plan = level.plans.get(key)
    if plan is None:
        plan = level.table.enter(level.plans, key, inherent_plan(level, func, args, kwargs))
    return plan(level, args, kwargs)


def plan_for(level: Level, key: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Make and keep the plan of a call, given the key that it is looked up by."""
    listed = list in key or tuple in key
    return level.table.enter(level.plans, key, by_elements(key) if listed else make_plan(level, func, args, kwargs))


Table.make = staticmethod(plan_for)


def by_elements(key: Any) -> Plan:
    """Make the plan of a call with lists: the types in a list, too, decide between overloads."""
    if key[1] is list and _LISTS.isdisjoint(key[2:]):  # one list, in front, as for cat and stack
        plans: dict[Any, Plan] = {}
        all_batched = frozenset((BatchedTensor,))

        def plan_by_first(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            for x in args[0]:
                if type(x) is not BatchedTensor:
                    types = frozenset(map(type, args[0]))
                    break
            else:
                types = all_batched
            plan = plans.get(types)
            if plan is None:
                plan = level.table.enter(
                    level.plans, (key, _element_types(args[0])), make_plan(level, key[0], args, kwargs)
                )
                if _LISTS.isdisjoint(types):
                    plans[types] = plan
            return plan(level, args, kwargs)

        return plan_by_first

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        full = (key, *map(_element_types, args), *map(_element_types, kwargs.values()))
        plan = level.plans.get(full)
        if plan is None:
            plan = level.table.enter(level.plans, full, make_plan(level, key[0], args, kwargs))
        return plan(level, args, kwargs)

    return plan


_LISTS = frozenset((list, tuple))


def _element_types(a: Any) -> Any:
    """Types in a list: they decide between overloads (``[1, 2]`` or ``[tensor, tensor]``)."""
    kind = type(a)
    if kind is not tuple and kind is not list:
        return kind
    types = frozenset(map(type, a))
    return types if _LISTS.isdisjoint(types) else frozenset(map(_element_types, a))


def make_plan(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Decide how calls of this signature run.

    In this order: a type of somebody else's that overrides functions of PyTorch; a rule for the function itself; a
    rule for the overload it means (exact, or by the family its schema and tags put it in); the Python body of a
    composite function; the dispatcher (door 2).
    """
    from . import _plans

    others = list(dict.fromkeys(_overriding((*args, *kwargs.values()))))
    if others:
        return overridden_plan(func, others)
    rule = level.table.rule(func)
    if rule is not None and not isinstance(func, OpOverload):
        return _plans.from_rule(rule, func, None, None, args)
    return inherent_plan(level, func, args, kwargs)


def inherent_plan(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Decide how calls run that have no rule for the function itself."""
    from . import _autocast, _lower, _plans

    if func in (torch.autograd.grad, torch.Tensor.backward):  # their bodies hand the tensors to the engine
        from ._interop import needs_autograd

        return needs_autograd(func)
    if type(func) is FunctionType:
        return body_plan(func)
    out_names = _plans.out_names(func)
    if out_names and kwargs.get(out_names[0]) is not None:
        return _plans.out_plan(func, out_names)
    if "requires_grad" in kwargs and type(func) is BuiltinFunctionType:
        return _plans.factory_plan(func)
    op, arrange = _binding.bind(func, args, kwargs) or (None, None)
    plan = None if op is None else _plans.for_overload(level, func, op, arrange, args, kwargs)
    plan = plan or _lower.plan(func, op, arrange)
    return _autocast.cast_first(level, func, op, plan) if level.autocast and op is not None else plan


def body_plan(func: Any) -> Plan:
    """Run the Python body of an overridable function, its inner calls meeting this level again."""

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        push_level(level)
        try:
            return skip_one_hop(func, (BatchedTensor,), args, kwargs)
        finally:
            pop_level()

    plan.how = "Python body"  # type: ignore[attr-defined]
    return plan


def _overriding(args: Any) -> Iterator[type]:
    """Iterate over types of arguments that are no tensors and yet take part in calls of PyTorch's functions."""
    for a in args:
        kind = type(a)
        if kind in _LISTS:
            yield from _overriding(a)
        elif hasattr(kind, "__torch_function__") and kind is not BatchedTensor and not issubclass(kind, torch.Tensor):
            yield kind


def overridden_plan(func: Any, kinds: list[type]) -> Plan:
    """Hand a call to such types (a linear operator, a dict of tensors), whose own calls meet this level again."""

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with pushed(level):
            for kind in kinds:
                out = kind.__torch_function__(func, tuple(kinds), args, kwargs)  # type: ignore[attr-defined]
                if out is not NotImplemented:
                    return out
        raise TypeError(f"no implementation found for {func} on types that implement __torch_function__: {kinds}")

    return plan


def physically(function: Callable[[Any], Any], value: Any) -> Any:
    """Look at a physical value with the innermost level off the stack."""
    modes = 0 if type(value) is BatchedTensor else _len_torch_function_stack()
    if not modes:
        return function(value)
    mode = pop_level()
    try:
        return function(value) if modes == 1 else physically(function, value)
    finally:
        push_level(mode)


def outside(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Handle a call on tensors whose level is not active here.

    An unbatched one stands for the same value in every sample, so it may be used on (a cache filled inside the
    mapped function); a batched one means nothing any more.

    Raises:
        EscapedTensorError: a tensor is batched.
    """
    dead: list[Any] = []

    def revive(a: Any) -> Any:
        if type(a) is BatchedTensor:
            if a._bdim is None:
                return revive(a._value)
            dead.append(a)
        if type(a) in (list, tuple):
            return type(a)(map(revive, a))
        return a

    args = revive(tuple(args))
    kwargs = {k: revive(v) for k, v in kwargs.items()}
    if not dead:
        return emitter(func)(*args, **kwargs)
    raise escaped(dead[0])


def escaped(x: BatchedTensor) -> EscapedTensorError:
    """Make the error for a batched tensor whose level is not active here."""
    return EscapedTensorError(
        f"vmap: a tensor of the {x._level!r} was used at {user_location()}, where that level is not active: "
        f"Either your tensor may have escaped from inside a function being vmapped and this is a user error "
        f"(see https://pytorch.org/functorch/stable/ux_limitations.html). Instead: return it from the mapped function."
    )


def emitter(func: Any) -> Callable[..., Any]:
    """Return how to call an operation on physical values, which may be BatchedTensors of an outer level.

    A builtin costs about 0.4 microseconds less than the overload, so it is taken where it means the same.
    """
    if isinstance(func, OpOverload):
        name = func._schema.name.partition("::")[2]
        public = getattr(torch, name, None)
        aten = func.namespace == "aten"
        return public if aten and type(public) is BuiltinFunctionType and name not in _NOT_THE_OVERLOAD else func
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


@contextlib.contextmanager
def pushed(level: Level) -> Any:
    """Run a block with a level on the stack again."""
    push_level(level)
    try:
        yield
    finally:
        pop_level()
