"""The planner: decides how the calls of a signature run, once.

`vmap_core.levels.level.call` looks up what runs a call by the function and the types of its arguments. The first such
call comes here. A plan closes over everything that follows from the types alone: the overload, its rule, how to bring the
arguments in order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from ..levels.level import Level, call_by_types, pushed
from ..levels.tensor import BatchedTensor
from ..rulekit.checked import checked
from ..rulekit.keeping import keep, lasts
from ..rulekit.packs import is_own
from ..rulekit.rule import Rule, Table
from ..torch_compat.mode_stack import pop_mode, push_mode, skip_one_hop
from ..torch_compat.operators import OpOverload, returns_view
from .autocast import cast_first
from .binding import Arrange, bind
from .door2 import parts_run
from .general import general_run, unbatched_run, view_run
from .inplace import inplace_run, metadata_run
from .layout_check import layout_checked
from .numbers import numbers_run
from .out import factory_run, names_of_out, out_run
from .plan import Plan, Run, Served
from .properties import property_run
from .refusals import needs_autograd
from .resolve import ONCE, PARTS, resolve
from .specialise import specialise
from .ways import way


def call_inherent(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call without the rule for the function itself; for such a rule, to pass a call on."""
    elements = tuple(map(_element_types, (*args, *kwargs.values())))
    key: Any = (call_inherent, func, len(args), *kwargs, *elements)
    run = level.plans.get(key)
    if run is None:
        run = level.table.enter(level.plans, key, inherent_plan(level, func, args, kwargs))
    return run(level, args, kwargs)


def run_for(level: Level, key: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    """Plan a call, given the key that it is looked up by; keep and return what runs it."""
    _learn_lists((*args, *kwargs.values()))
    listed = not LISTS.isdisjoint(key[1:])
    plan = Plan(by_elements(key, len(args)), BY_ELEMENTS) if listed else make_plan(level, func, args, kwargs)
    run = level.table.enter(level.plans, key, plan)
    kinds = (*map(type, args), *map(type, kwargs.values()))
    if plan.first is None and lasts(func) and all(map(lasts, kinds)):
        level.ways[func] = way(run, args, kwargs, _behind(level, func))
    return run


Table.make = staticmethod(run_for)


def _behind(level: Level, func: Any) -> Run:
    """Return what runs the calls of a function until now."""
    return level.ways.get(func) or functools.partial(call_by_types, func)


BY_ELEMENTS = Served("by the types in its lists")


def by_elements(key: Any, count: int) -> Run:
    """Make what runs a call with lists: the types in a list, too, decide between overloads."""
    func, types, rest = key[0], key[1 : 1 + count], key[1 + count :]
    if types[:1] == (list,) and LISTS.isdisjoint(types[1:]) and LISTS.isdisjoint(rest):  # as for cat and stack
        runs: dict[Any, Run] = {}
        all_batched = frozenset((BatchedTensor,))

        def run_by_first(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            for x in args[0]:
                if type(x) is not BatchedTensor:
                    types = frozenset(map(type, args[0]))
                    break
            else:
                types = all_batched
            run = runs.get(types)
            if run is None:
                full = (key, _element_types(args[0]))
                run = level.table.enter(level.plans, full, make_plan(level, func, args, kwargs))
                if LISTS.isdisjoint(types):
                    keep(runs, types, run)
                if types is all_batched and hasattr(run, "lines") and lasts(func):  # lines look at lists themselves
                    behind = _behind(level, func)
                    level.ways[func] = way(run, args, kwargs, behind, general=behind)
            return run(level, args, kwargs)

        return run_by_first
    places = [i for i, kind in enumerate(types) if kind in LISTS]
    if LISTS.isdisjoint(rest) and len(places) == 1:  # as for reshape((2, 3))
        (place,) = places

        def run_by_one(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            full = (key, _element_types(args[place]))
            run = level.plans.get(full)
            if run is None:
                run = level.table.enter(level.plans, full, make_plan(level, func, args, kwargs))
            return run(level, args, kwargs)

        return run_by_one

    def run_by_all(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        full = (key, *map(_element_types, args), *map(_element_types, kwargs.values()))
        run = level.plans.get(full)
        if run is None:
            run = level.table.enter(level.plans, full, make_plan(level, func, args, kwargs))
        return run(level, args, kwargs)

    return run_by_all


LISTS: set[type] = {list, tuple}  # and those of their kind that have been met


def _learn_lists(args: Any) -> None:
    for a in args:
        if _is_list(a):
            if lasts(type(a)):
                LISTS.add(type(a))
            _learn_lists(_items(a))


def _is_list(a: Any) -> bool:
    return isinstance(a, list | tuple | dict) and type(a) is not torch.Size


def _items(a: Any) -> Any:
    return a.values() if isinstance(a, dict) else a


def _element_types(a: Any) -> Any:
    """Types in a list: they decide between overloads (``[1, 2]`` or ``[tensor, tensor]``)."""
    kind = type(a)
    if kind not in LISTS:
        return kind
    types = frozenset(map(type, _items(a)))
    return types if LISTS.isdisjoint(types) else frozenset(map(_element_types, _items(a)))


def make_plan(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Decide how calls of a signature run; a table that checks its rules looks at what they return, too."""
    plan = _plan(level, func, args, kwargs)
    return replace(plan, run=layout_checked(plan, func)) if level.table.checks else plan


def _plan(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Decide how calls of a signature run.

    In this order: a type of somebody else's that overrides functions of PyTorch; a rule for the function itself; the Python
    body of a composite function; whoever serves the overload that the call means (see `resolve`); the dispatcher (door 2).
    """
    others = list(dict.fromkeys(_overriding((*args, *kwargs.values()))))
    if others:
        return Plan(overridden_run(func, others), Served(f"{others[0].__name__}.__torch_function__"))
    rule = level.table.rule(func)
    if rule is not None and not isinstance(func, OpOverload) and (rule.when is None or rule.when(args, kwargs)):
        rule = checked(rule, func, level.table.checks)
        return Plan(rule_run(rule, func, None, None, args, kwargs), Served("rule", rule))
    return inherent_plan(level, func, args, kwargs)


def inherent_plan(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Decide how calls run that have no rule for the function itself."""
    if func in (torch.autograd.grad, torch.Tensor.backward):  # their bodies hand the tensors to the engine
        return Plan(needs_autograd(func), Served("refused"))
    if type(func) is FunctionType:
        return Plan(body_run(func), Served("Python body"))
    written = names_of_out(func)
    if written and kwargs.get(written[0]) is not None:
        served = (
            resolve(level.table, func) if isinstance(func, OpOverload) else Served("computed, then written to out=")
        )
        return Plan(out_run(func, written), served)
    if "requires_grad" in kwargs and type(func) is BuiltinFunctionType:
        return Plan(factory_run(func), Served("made, then requires_grad is set"))
    op, arrange = bind(func, args, kwargs) or (None, None)
    if op is None:
        numbers = numbers_run(func, kwargs)
        if numbers is not None:
            return Plan(numbers, Served("numbers of each sample"))
        is_property = getattr(func, "__name__", "") in ("__get__", "__set__")
        return Plan(property_run(func), Served("property")) if is_property else Plan(parts_run(func, None), PARTS)
    plan = overload_plan(level, func, op, arrange, args, kwargs)
    return Plan(cast_first(level, func, op, plan), plan.served) if level.autocast else plan


def overload_plan(
    level: Level, func: Any, op: OpOverload, arrange: Arrange | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan:
    """Return how calls run that mean an overload."""
    served = resolve(level.table, op)
    if served.rule is not None:
        served = replace(served, rule=checked(served.rule, op, level.table.checks))
    rule, writes, first = served.rule, op._schema.is_mutable, None
    if writes and torch.Tag.inplace_view in op.tags and served.written is not None:
        run = metadata_run(op, served.written, arrange)
    elif writes and (served.written is not None or (rule is not None and rule.kind == "physical")):
        run = inplace_run(func, op, arrange, served)
        if served.written is None and rule is not None:
            run = specialise(rule, op, arrange, args, kwargs, run)
    elif rule is not None:
        run = rule_run(rule, func, op, arrange, args, kwargs)
        if rule.agreeing is not None and not is_own(rule.pack):  # else the rule itself would never run
            first = general_run(rule, func, op, arrange)
    else:
        run = unbatched_run(func, op) if served is ONCE else parts_run(func, op)
    return Plan(run, served, first)


def rule_run(
    rule: Rule, func: Any, op: OpOverload | None, arrange: Arrange | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Run:
    """Make what runs calls of a signature by a rule."""
    general = general_run(rule, func, op, arrange)
    if returns_view(op) if op is not None else rule.by_shape or rule.may_return_self:  # without an operator: a property
        general = view_run(general)
        if rule.kind == "logical":
            return general
    return specialise(rule, op, arrange, args, kwargs, general)


def body_run(func: Any) -> Run:
    """Run the Python body of an overridable function, its inner calls meeting this level again."""

    def run(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        push_mode(level)
        try:
            return skip_one_hop(func, (BatchedTensor,), args, kwargs)
        finally:
            pop_mode()

    return run


def _overriding(args: Any) -> Iterator[type]:
    """Iterate over types of arguments that are no tensors and yet take part in calls of PyTorch's functions."""
    for a in args:
        kind = type(a)
        if _is_list(a):
            yield from _overriding(_items(a))
        elif hasattr(kind, "__torch_function__") and kind is not BatchedTensor and not issubclass(kind, torch.Tensor):
            yield kind


def overridden_run(func: Any, kinds: list[type]) -> Run:
    """Hand a call to such types (a linear operator, a dict of tensors), whose own calls meet this level again."""

    def run(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with pushed(level):
            for kind in kinds:
                out = kind.__torch_function__(func, tuple(kinds), args, kwargs)  # type: ignore[attr-defined]
                if out is not NotImplemented:
                    return out
        raise TypeError(f"no implementation found for {func} on types that implement __torch_function__: {kinds}")

    return run
