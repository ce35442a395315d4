"""Plans: how calls of one signature run, once their rule is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import _dispatch, _inplace, _ownership, _randomness, _shortcuts
from ._custom import registered_rule
from ._tensor import BatchedTensor, make_batched

if TYPE_CHECKING:
    from ._binding import Arrange
    from ._dispatch import Plan
    from ._level import Level
    from ._registry import Rule

_NUMBERS = frozenset((int, float, bool, type(None), str))
RANDOM = torch.Tag.nondeterministic_seeded


def for_overload(
    level: Level, func: Any, op: OpOverload, arrange: Arrange | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan | None:
    """Return the plan for a call that means ``op``, or None if only the dispatcher knows how to run it."""
    from ._families import default_rule

    if op._schema.is_mutable:
        return _inplace.plan(level, func, op, arrange)
    rule = level.table.rule(op) or default_rule(op) or registered_rule(op)
    return None if rule is None else from_rule(rule, func, op, arrange, args, kwargs)


def from_rule(
    rule: Rule,
    func: Any,
    op: OpOverload | None,
    arrange: Arrange | None,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Plan:
    """Make the plan that runs a rule.

    Args:
        rule: the rule.
        func: what was called.
        op: the overload it means, if it means one.
        arrange: brings the arguments into the schema's order.
        args: arguments of the first such call; their types hold for all.
        kwargs: its keyword arguments.
    """
    plan = _choose(rule, func, op, arrange, [type(a) for a in args], args, kwargs or {})
    plan.rule = rule  # type: ignore[attr-defined]  # for those who ask who served a call
    return plan


def _choose(
    rule: Rule, func: Any, op: OpOverload | None, arrange: Arrange | None, types: list[type], args: Any, kwargs: Any
) -> Plan:
    """Return a short cut where the types allow one, else the general plan."""
    general = _general_plan(rule, func, op, arrange)
    if op is not None and ([str(r.type) for r in op._schema.returns] != ["Tensor"] or RANDOM in op.tags):
        return general
    alone = types[:1] == [BatchedTensor] and not _has_tensor((*args[1:], *kwargs.values()))
    asked = getattr(rule.function, "by_shape", None)
    if alone and asked is not None:
        return _shortcuts.by_shape_plan(asked, general, arrange)
    if rule.kind != "physical" or op is None:
        return general
    if arrange is not None:
        return _shortcuts.arranged_plan(rule.function, general, arrange) if alone and _plain(rule) else general
    emit = getattr(rule.function, "emit", None)
    if emit is not None:
        return _shortcuts.pointwise_plan(emit, general, types)
    if types[:1] == [list] and set(map(type, args[0])) == {BatchedTensor} and not _has_tensor(args[1:]) and not kwargs:
        return _shortcuts.list_plan(rule.function, general, (None,) * (len(args) - 1))
    if alone and not kwargs and _plain(rule):
        return _shortcuts.single_plan(rule.function, general, (None,) * (len(args) - 1))
    if len(args) == 2 and not kwargs and all(isinstance(a, Tensor) for a in args) and _plain(rule):
        return _shortcuts.pair_plan(rule.function, general)
    return general


def _plain(rule: Rule) -> bool:
    return not getattr(rule.function, "may_return_self", False)


def _has_tensor(args: Any) -> bool:
    for a in args:
        if isinstance(a, Tensor) or (isinstance(a, list | tuple) and _has_tensor(a)):
            return True
    return False


def _general_plan(rule: Rule, func: Any, op: OpOverload | None, arrange: Arrange | None) -> Plan:
    function = rule.function
    if rule.kind == "logical":

        def logical_plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if arrange is not None:
                args, kwargs = arrange(args, kwargs)
            return function(level, *args, **kwargs) if kwargs else function(level, *args)

        return logical_plan

    always = op is not None and RANDOM in op.tags
    run_unbatched = unbatched_plan(func, op)
    named = _return_type(func, op)
    may_return_self = getattr(function, "may_return_self", False)

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, given_kwargs = args, kwargs
        if arrange is not None:
            args, kwargs = arrange(args, kwargs)
        values, dims, batched = unwrap(level, args)
        if kwargs:
            kwargs, kw_dims, kw_batched = unwrap_kwargs(level, kwargs)
            if kw_dims:
                dims.append(kw_dims)
                batched = batched or kw_batched
        if batched or always:
            out, out_dims = function(level, tuple(dims), *values, **kwargs)
            if may_return_self and out is values[0]:
                return args[0]
            result = wrap(level, out, out_dims)
            return result if named is None or type(result) is named else named(result)
        return run_unbatched(level, given, given_kwargs)

    return plan


def _return_type(func: Any, op: OpOverload | None) -> Any:
    """Return the torch.return_types class that a call to ``func`` gives, if it gives one; an overload gives a tuple."""
    if op is None or isinstance(func, OpOverload) or len(op._schema.returns) < 2 or op.namespace != "aten":
        return None
    return getattr(torch.return_types, op._schema.name.partition("::")[2], None)


def unwrap(level: Level, args: Sequence[Any]) -> tuple[list[Any], list[Any], bool]:
    """Split arguments into physical values and batch dims; say whether any is batched at this level.

    Returns:
        The values; one entry each of int, None or (for a list of tensors) a list of those; the flag.
    """
    values: list[Any] = []
    dims: list[Any] = []
    batched = False
    for a in args:
        kind = type(a)
        if kind is BatchedTensor and a._level is level:
            values.append(a._value)
            dims.append(a._bdim)
            if a._bdim is not None:
                batched = True
        elif kind in _NUMBERS:
            values.append(a)
            dims.append(None)
        elif isinstance(a, list | tuple) and not _NUMBERS.issuperset(map(type, a)) and _has_tensor(a):
            inner, inner_dims, inner_batched = unwrap(level, a)
            values.append(inner)
            dims.append(inner_dims)
            batched = batched or inner_batched
        else:
            values.append(a)
            dims.append(None)
    return values, dims, batched


def unwrap_kwargs(level: Level, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Do the same for keyword-only arguments; the dims are those of tensors only, by name."""
    values, dims, batched = unwrap(level, tuple(kwargs.values()))
    tensors = {k: d for (k, v), d in zip(kwargs.items(), dims, strict=True) if isinstance(v, Tensor | list | tuple)}
    return dict(zip(kwargs, values, strict=True)), tensors, batched


def wrap(level: Level, out: Any, out_dims: Any) -> Any:
    """Turn what a rule returned into what the mapped function sees."""
    if type(out_dims) is int:
        if isinstance(out, list | tuple):
            return rebuild(out, [wrap(level, o, out_dims) for o in out])
        return make_batched(out, out_dims, level)
    if isinstance(out, Tensor):
        return _ownership.fresh(level, out)
    if isinstance(out, list | tuple):
        dims = out_dims if isinstance(out_dims, list | tuple) else [out_dims] * len(out)
        return rebuild(out, [wrap(level, o, d) for o, d in zip(out, dims, strict=True)])
    return out


def rebuild(like: Any, items: list[Any]) -> Any:
    """Make a list, tuple, namedtuple or torch.return_types value like another one, from new items."""
    kind = type(like)
    if kind is list:
        return items
    return kind(*items) if hasattr(like, "_fields") else kind(items)


def any_batched(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a call has a tensor that is batched at this level."""
    return unwrap(level, (*args, *kwargs.values()))[2]


def unbatched_plan(func: Any, op: OpOverload | None) -> Plan:
    """Make the plan for a call without batched arguments: run it once; its results belong to the level."""
    emit = _dispatch.emitter(func)
    may_alias = op is None or any(r.alias_info is not None for r in op._schema.returns)

    watched = _randomness.may_draw_unannounced(op)

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = unwrap(level, args)[0]
        before = _randomness.snapshot(values) if watched else None
        out = emit(*values, **(unwrap_kwargs(level, kwargs)[0] if kwargs else kwargs))
        if before is not None and _randomness.drawn(before):
            _randomness.refuse_unannounced(level, op, "different")
        return own(level, func, out, args, values, kwargs) if may_alias else wrap(level, out, None)

    return plan


def own(level: Level, func: Any, out: Any, args: tuple[Any, ...], values: list[Any], kwargs: dict[str, Any]) -> Any:
    """Wrap results that may be views of, or the same object as, an argument."""
    if isinstance(out, list | tuple):
        return rebuild(out, [_own_one(level, func, o, i, args, values, kwargs) for i, o in enumerate(out)])
    return _own_one(level, func, out, None, args, values, kwargs)


def _own_one(
    level: Level, func: Any, out: Any, i: int | None, args: Any, values: list[Any], kwargs: dict[str, Any]
) -> Any:
    if not isinstance(out, Tensor):
        return out
    for arg, value in zip(args, values, strict=True):
        if out is value:
            return arg
        if isinstance(value, Tensor) and _ownership.same_storage(out, value):
            if type(arg) is not BatchedTensor or arg._level is not level:
                # A view of a tensor from outside stays what it is; a detached one may become a leaf per sample.
                return _ownership.shared(level, out) if getattr(func, "__name__", "") == "detach" else out

            def replay() -> BatchedTensor:
                again = _dispatch.call(level, func, args, kwargs)
                return again if i is None else again[i]

            return _ownership.view(level, out, arg, replay)
    return _ownership.fresh(level, out)


def out_names(func: Any) -> list[str]:
    """Return the names of the arguments that a function writes its results to."""
    if not isinstance(func, OpOverload):
        return ["out"]
    return [a.name for a in func._schema.arguments if a.is_out]


def out_plan(func: Any, names: list[str]) -> Plan:
    """Make the plan for ``f(..., out=t)``: compute without it, then write the result to ``t``."""
    from ._lower import is_random

    functional = func.overloadpacket if isinstance(func, OpOverload) else func
    # a random operation draws per sample whatever its arguments are
    random = is_random(functional)
    run_unbatched = unbatched_plan(func, None)

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = kwargs[names[0]] if len(names) == 1 else [kwargs[name] for name in names]
        if not random and not any_batched(level, args, kwargs):
            with _inplace.unrepeated(level, func, [out]):
                run_unbatched(level, args, kwargs)
            return out
        rest = {k: v for k, v in kwargs.items() if k not in names}
        results = _dispatch.call(level, functional, args, rest)
        if isinstance(out, Tensor):
            _inplace.write_out(level, func, out, results)
        else:
            for target, result in zip(out, results, strict=True):
                _inplace.write_out(level, func, target, result)
        return out

    plan.how = "computed, then written to out="  # type: ignore[attr-defined]
    return plan


def factory_plan(func: Any) -> Plan:
    """Make the plan for ``f(..., requires_grad=flag)``: the schemas do not have that argument."""

    def plan(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rest = {k: v for k, v in kwargs.items() if k != "requires_grad"}
        result = _dispatch.call(level, func, args, rest)
        return _ownership.requires_grad_(level, result) if kwargs["requires_grad"] else result

    return plan


def inherited_property_plan(func: Callable[..., Any]) -> Plan:
    """Make the plan for a property of Tensor without a rule: read or set on the physical tensor."""
    name, writes = func.__self__.__name__, func.__name__ == "__set__"  # type: ignore[attr-defined]

    def get(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if type(x) is not BatchedTensor or x._level is not level:
            return getattr(x, name)
        out = getattr(x._value, name)
        return wrap(level, out, x._bdim) if isinstance(out, Tensor) else out

    def set_(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from ._read import unsupported

        x, new = args
        if type(x) is BatchedTensor and x._level is level:
            if isinstance(new, Tensor):
                raise unsupported(x, f"assignment to .{name}", "use an in-place operation, or a new name")
            return setattr(x._value, name, new)
        if type(new) is BatchedTensor:
            raise unsupported(new, f"assignment to .{name} of a tensor from outside", "assign outside the function")
        return setattr(x, name, new)

    return set_ if writes else get
