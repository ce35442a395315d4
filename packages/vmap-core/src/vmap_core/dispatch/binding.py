"""Binding: which ATen overload a Python call means, and its arguments in the schema's order.

PyTorch's Python signatures are more liberal than ATen's schemas: ``x.permute(1, 0)``, ``x.sum(axis=0)``,
``torch.add(input=x, other=y)``. `bind` matches a call against the schemas as strictly as PyTorch's own argument
parser does; whatever it does not match goes through the dispatcher (door 2), where PyTorch parses it itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodDescriptorType
from typing import Any

import torch
from torch import Tensor

from ..torch_compat.operators import OpOverload, OpOverloadPacket, overloads_of, packet_of


@dataclass(frozen=True, slots=True)
class Arrange:
    """Brings the arguments of calls of one signature into the schema's order.

    Attributes:
        positional: where each positional argument comes from: ``("a", index)`` of the positional ones given, ``("v", index)``
            all of those from an index on, ``("k", name)`` of the keyword arguments, ``("d", value)`` the default.
        renamed: keyword-only arguments: the schema's name, and the call's, or their place among the positional ones given.
    """

    positional: tuple[tuple[str, Any], ...]
    renamed: tuple[tuple[str, str | int], ...]

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the keyword-only arguments of a call."""
        out = []
        for kind, source in self.positional:
            if kind == "a":
                out.append(args[source])
            elif kind == "k":
                out.append(kwargs[source])
            elif kind == "v":
                out.append(args[source:])
            else:
                out.append(source)
        return tuple(out), {
            name: args[given] if isinstance(given, int) else kwargs[given] for name, given in self.renamed
        }


_KEYWORDS = {
    "axis": "dim",
    "keepdims": "keepdim",
    "x": "self",
    "a": "self",
    "x1": "self",
    "x2": "other",
    "input": "self",
}


def bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[OpOverload, Arrange | None] | None:
    """Find the overload that a call means.

    Args:
        func: a builtin function or method of PyTorch, an ``OpOverload`` or an ``OpOverloadPacket``.
        args: the call's positional arguments; only their types (and those of list elements) matter.
        kwargs: the call's keyword arguments.

    Returns:
        The overload and a function that brings such calls' arguments into the schema's order (None where they
        are in order already), or None if no overload, or more than PyTorch would tell apart, fits.
    """
    if isinstance(func, OpOverload):  # chosen already; the dispatcher gives numbers for some Tensor arguments
        sources = _match(func, args, kwargs, _any)
        return None if sources is None else (func, _arranger(sources, len(args), kwargs))
    packet = func if isinstance(func, OpOverloadPacket) else packet_of(func)
    method = isinstance(func, MethodDescriptorType)
    for overload in overloads_of(packet) if packet is not None else ():
        sources = _match(overload, args, kwargs, _accepts, method)
        if sources is not None:
            return overload, _arranger(sources, len(args), kwargs)
    return None


def _match(
    op: OpOverload,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    accepts: Callable[[Any, Any], bool],
    method: bool = False,
) -> list[tuple[str, Any]] | None:
    """Return, for each positional schema argument, where it comes from; None if the call does not fit.

    Sources: ``("a", index)`` positional, ``("v", index)`` the varargs from index on, ``("k", name)`` keyword,
    ``("d", value)`` default. Keyword-only arguments follow as ``("=", (schema name, call's name))``.
    """
    schema = op._schema.arguments
    positional = [a for a in schema if not (a.kwarg_only or _is_named(op, a))]
    keyword_only = [a for a in schema if a.kwarg_only or _is_named(op, a)]
    given = dict(kwargs)
    sources: list[tuple[str, Any]] = []
    packed = False
    at = next((i for i, a in enumerate(positional) if a.name == "self"), 0) if method else 0
    for i, arg in enumerate(positional):
        place = 0 if i == at else i + (i < at)  # a method's tensor comes first, wherever its schema has it
        if place < len(args):
            if accepts(arg, args[place]):
                sources.append(("a", place))
            elif _varargs(arg, positional, i, args):
                sources.append(("v", i))
                packed = True
                break
            else:
                return None
        else:
            name = _keyword(arg.name, given)
            if name is not None:
                if not accepts(arg, given.pop(name)):
                    return None
                sources.append(("k", name))
            elif arg.has_default_value():
                sources.append(("d", arg.default_value))
            else:
                return None
    spare = [] if packed else list(range(len(positional), len(args)))
    for arg in keyword_only:
        name = _keyword(arg.name, given)
        if spare and accepts is _any and _is_named(op, arg):
            sources.append(("=", (arg.name, spare.pop(0))))
        elif name is not None:
            if not accepts(arg, given.pop(name)):
                return None
            sources.append(("=", (arg.name, name)))
        elif not arg.has_default_value():
            return None
    if given or spare:
        return None
    return sources


def _is_named(op: OpOverload, arg: Any) -> bool:
    """Tell whether an argument is to be given by its name, whatever the schema says.

    ``add(x, 2, 3)`` of PyTorch's functions is an old form of ``add(x, 3, alpha=2)``; of the overload, ``alpha`` is the 3.
    """
    return bool(arg.name == "alpha") and op._schema.overload_name == "Scalar" and op._schema.name[6:] in _SUMS


_SUMS = ("add", "add_", "sub", "sub_", "subtract", "subtract_", "rsub")


def _any(arg: Any, value: Any) -> bool:
    return True


def _keyword(schema_name: str, given: dict[str, Any]) -> str | None:
    if schema_name in given:
        return schema_name
    return next((k for k in given if _KEYWORDS.get(k) == schema_name), None)


def _varargs(arg: Any, positional: list[Any], i: int, args: tuple[Any, ...]) -> bool:
    """``x.permute(1, 0)``: trailing ints for a list that is the only argument beside self."""
    only = len(positional) - (positional[0].name == "self") == 1
    return only and str(arg.type) == "List[int]" and all(type(a) in _INTS for a in args[i:])


_INTS = (int, torch.SymInt)
_SCALARS = (int, float, bool, complex, torch.SymInt, torch.SymFloat)
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "Tensor": lambda v: isinstance(v, Tensor),
    "number": lambda v: isinstance(v, _SCALARS),
    "int": lambda v: type(v) in _INTS,
    "SymInt": lambda v: type(v) in _INTS,
    "float": lambda v: isinstance(v, int | float | torch.SymFloat) and type(v) is not bool,
    "bool": lambda v: type(v) is bool,
    "str": lambda v: isinstance(v, str),
    "Any": lambda v: True,
    "ScalarType": lambda v: isinstance(v, torch.dtype) or v in (float, int, bool, complex),
    "Layout": lambda v: isinstance(v, torch.layout),
    "MemoryFormat": lambda v: isinstance(v, torch.memory_format),
    "Device": lambda v: isinstance(v, torch.device | str | int) and type(v) is not bool,
    "Generator": lambda v: isinstance(v, torch.Generator),
}


def _accepts(arg: Any, value: Any) -> bool:
    return _fits(str(arg.real_type), value, arg.N)


def _fits(kind: str, value: Any, fixed: int | None) -> bool:
    if kind.startswith("Optional["):
        return value is None or _fits(kind[9:-1], value, fixed)
    if kind.startswith("List["):
        inner = kind[5:-1]
        if isinstance(value, list | tuple):
            return all(_fits(inner, v, None) for v in value)
        # int[1] takes a bare int
        return fixed is not None and inner in ("int", "SymInt", "float") and _fits(inner, value, None)
    check = _CHECKS.get(kind)
    return check is not None and check(value)


def _arranger(sources: list[tuple[str, Any]], n_args: int, kwargs: dict[str, Any]) -> Arrange | None:
    while sources and sources[-1][0] == "d":
        sources.pop()
    positional = [s for s in sources if s[0] != "="]
    if any(kind == "=" for kind, _ in sources):  # defaults may stand before the keyword-only ones
        while positional and positional[-1][0] == "d":
            positional.pop()
    renamed = [pair for kind, pair in sources if kind == "="]
    in_order = all(kind == "a" and source == i for i, (kind, source) in enumerate(positional))
    if in_order and len(positional) == n_args and all(a == b for a, b in renamed):
        return None

    return Arrange(tuple(positional), tuple(renamed))
