"""What an operator refuses, its rule refuses: the operator itself is asked, once for each signature of a sample.

A rule that says an operator in others has their checks, not its own: it broadcasts where the operator does not, promotes
types that the operator refuses, or takes one more dim for a batch. So the operator is called on zeros like one sample's
tensors, on the side: nobody who watches operations sees it. Zeros may be refused for what they are (a matrix without an
inverse); so what is refused is tried again on the first sample, and what that raises the loop raises, too.

Tensors without memory (the meta device) would cost less, but their kernels let pass a part of what the others refuse:
sizes and ranks they mostly check, dtypes often not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..levels.args import unwrap, unwrap_kwargs
from ..levels.containers import map_with_dims
from ..levels.level import Level
from ..levels.tensor import BatchedTensor
from ..torch_compat.operators import OpOverload, overload_of
from ..torch_compat.state import initial_state

Ask = Callable[[Level, Any, Any, dict[str, Any]], torch.dtype | None]


def asking(function: Callable[..., Any], op: Any, logical: bool) -> Callable[..., Any]:
    """Return a rule that asks its operator first; what a logical one returns has the operator's dtype.

    Args:
        function: the rule.
        op: the operator; none that draws.
        logical: the rule takes BatchedTensors, and no batch dims.
    """
    ask = asker(op)

    @functools.wraps(function)
    def asked(info: Level, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        ask(info, in_dims, args, kwargs)
        return function(info, in_dims, *args, **kwargs)

    @functools.wraps(function)
    def asked_logical(info: Level, *args: Any, **kwargs: Any) -> Any:
        dtype = ask(info, None, args, kwargs)
        out = function(info, *args, **kwargs)
        if dtype is None or type(out) is not BatchedTensor or out._value.dtype is dtype:
            return out
        with info.pushed():  # its parts promote as the operator does not
            return out.to(dtype)

    return asked_logical if logical else asked


def asker(op: Callable[..., Any]) -> Ask:
    """Return what calls an operator on zeros like a sample's, the first time with such.

    It takes the level, batch dims (None where tensors of the level are given as they are), args and kwargs, and returns the
    dtype of the result, where that is one tensor. What it has let pass it lets pass again.
    """
    known: dict[Any, torch.dtype | None] = {}
    asked = {"operator": op}  # perhaps a name of it yet, which nothing is to compare with the overload

    def ask(level: Level, dims: Any, args: Any, kwargs: dict[str, Any]) -> torch.dtype | None:
        given = (*args, *kwargs.values()) if kwargs else args
        types = tuple(map(type, given))
        read = _READERS.get(types) or _reader(types)
        try:
            key: Any = (dims, types, read(*given), *kwargs)
            return known[key]
        except KeyError:
            pass
        except TypeError:  # a list of tensors
            try:
                key = (_traits(dims), types, read(*given), *kwargs)
                if key in known:
                    return known[key]
            except TypeError:  # what else has no hash
                return None
        dtype = _ask(_liberal(overload_of(asked["operator"])), level, dims, args, kwargs)
        if len(known) >= ENTRIES:
            known.clear()
        if level.batch_size:  # an empty batch may have been let pass for want of a sample
            known[key] = dtype
        return dtype

    return ask


def _liberal(op: Any) -> Callable[..., Any]:
    """Return an overload that takes one number for a list of numbers, as the functions of PyTorch do."""
    if not isinstance(op, OpOverload):
        return op
    arguments: Any = op._schema.arguments
    names, sizes = [a.name for a in arguments], {a.name: a.N for a in arguments if a.N is not None}

    def listed(name: str, a: Any) -> Any:
        return [a] * sizes[name] if name in sizes and isinstance(a, int | float) else a

    return lambda *args, **kwargs: op(
        *map(listed, names, args), **{name: listed(name, a) for name, a in kwargs.items()}
    )


ENTRIES = 4096  # signatures that are remembered for one rule
_READERS: dict[Any, Callable[..., Any]] = {}


def _reader(types: tuple[type, ...]) -> Callable[..., Any]:
    """Return what reads the traits of arguments of these types: a line of Python, since every call is looked up by them."""
    names = [f"a{i}" for i in range(len(types))]
    reads = [_READS.get(kind, "{0}") if not issubclass(kind, Tensor) else _TENSOR for kind in types]
    line = f"lambda {', '.join(names)}: ({''.join(r.format(a) + ', ' for r, a in zip(reads, names, strict=True))})"
    read: Callable[..., Any] = eval(line, {"traits": _traits})
    if len(_READERS) < ENTRIES:
        _READERS[types] = read
    return read


_TENSOR = "{0}.shape, {0}.dtype, {0}.device"
_BATCHED = "(v := {0}._value).shape, v.dtype, v.device, {0}._bdim"
_LIST = "tuple({0}) if {0} and type({0}[0]) is int else traits({0})"
_READS = {BatchedTensor: _BATCHED, list: _LIST, tuple: _LIST, dict: "traits({0})"}


def _traits(a: Any) -> Any:
    if isinstance(a, Tensor):
        return (a.shape, a.dtype, a.device)
    if type(a) in (list, tuple):
        return tuple(map(_traits, a))
    return tuple((k, _traits(v)) for k, v in a.items()) if type(a) is dict else (type(a), a)


def _ask(op: Callable[..., Any], level: Level, dims: Any, args: Any, kwargs: dict[str, Any]) -> torch.dtype | None:
    try:
        with initial_state(), torch.no_grad():
            return _dtype(op, _each(_zeros, dims, args, kwargs))
    except Exception:
        if not level.batch_size:
            return None
    if dims is None:
        args, dims, _ = unwrap(level, args)
        kwargs, named, _ = unwrap_kwargs(level, kwargs)
        dims = [*dims, named]
    with torch.no_grad():
        return _dtype(op, _each(_first, dims, args, kwargs))


def _dtype(op: Callable[..., Any], given: tuple[list[Any], dict[str, Any]]) -> torch.dtype | None:
    args, kwargs = given
    out = op(*args, **kwargs)
    return out.dtype if isinstance(out, Tensor) else None


def _each(make: Callable[[Any, Any], Any], dims: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return arguments with what is made of each tensor and its batch dim; those of keyword arguments are last, by name."""
    dims = list(dims or ())
    named = dims.pop() if dims and type(dims[-1]) is dict else {}
    return (
        [map_with_dims(make, a, d) for a, d in zip_longest(args, dims)],
        {k: map_with_dims(make, a, named.get(k)) for k, a in kwargs.items()},
    )


def _zeros(a: Any, dim: int | None) -> Any:
    if not isinstance(a, Tensor):
        return a
    value = a
    while type(value) is BatchedTensor:
        value = value._value
    if type(value) not in (Tensor, Parameter):
        raise TypeError(f"{type(value)} may have no memory, and zeros would")
    return torch.zeros([n for d, n in enumerate(a.shape) if d != dim], dtype=a.dtype, device=a.device)


def _first(a: Any, dim: int | None) -> Any:
    if not isinstance(a, Tensor):
        return a
    return (a if dim is None else a.select(dim, 0)).clone()  # the operator may write to it
