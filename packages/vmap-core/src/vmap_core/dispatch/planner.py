"""Door 1: every PyTorch call a mapped function makes, from the call to its rule.

`call` looks a *plan* up by the function and the types of its arguments, and runs it. A plan is made on the first
such call (`make_plan`) and closes over everything that follows from the types alone: the overload, its rule, how to
bring the arguments in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from ..levels.level import Level, pushed
from ..levels.tensor import BatchedTensor
from ..rulekit.rule import Table
from ..torch_compat.mode_stack import pop_mode, push_mode, skip_one_hop
from ..torch_compat.operators import OpOverload
from . import door2
from . import out as _out
from .autocast import cast_first
from .binding import bind
from .out import factory_plan, out_plan
from .plan import Plan
from .refusals import needs_autograd
from .resolve import for_overload
from .rule_plan import from_rule


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
    others = list(dict.fromkeys(_overriding((*args, *kwargs.values()))))
    if others:
        return overridden_plan(func, others)
    rule = level.table.rule(func)
    if rule is not None and not isinstance(func, OpOverload):
        return from_rule(rule, func, None, None, args)
    return inherent_plan(level, func, args, kwargs)


def inherent_plan(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Decide how calls run that have no rule for the function itself."""
    if func in (torch.autograd.grad, torch.Tensor.backward):  # their bodies hand the tensors to the engine
        return needs_autograd(func)
    if type(func) is FunctionType:
        return body_plan(func)
    out_names = _out.out_names(func)
    if out_names and kwargs.get(out_names[0]) is not None:
        return out_plan(func, out_names)
    if "requires_grad" in kwargs and type(func) is BuiltinFunctionType:
        return factory_plan(func)
    op, arrange = bind(func, args, kwargs) or (None, None)
    plan = None if op is None else for_overload(level, func, op, arrange, args, kwargs)
    plan = plan or door2.plan(func, op, arrange)
    return cast_first(level, func, op, plan) if level.autocast and op is not None else plan


def body_plan(func: Any) -> Plan:
    """Run the Python body of an overridable function, its inner calls meeting this level again."""

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        push_mode(level)
        try:
            return skip_one_hop(func, (BatchedTensor,), args, kwargs)
        finally:
            pop_mode()

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
