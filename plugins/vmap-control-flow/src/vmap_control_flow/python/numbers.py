"""Python numbers that differ from sample to sample: ``int(x)``, ``x.item()``, and what is computed with them.

They are computed as the loop does, by Python, one by one; so they are as large and as exact as Python's are. Beside a tensor they
become one where that gives the same; whatever else needs one number parts the samples by it.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vmap_core.extend import BatchedTensor, Level, make_batched

from .._torch import DisableTorchFunction
from .parting import Part, key


class PerSample:
    """A Python number, or bool, for each sample of a level.

    Attributes:
        level: the level.
        data: the numbers in the order of its samples, as a tensor that holds them exactly: of int64, float64 or bool; or a list.
        bound: what no number of an int64 tensor exceeds.
    """

    __slots__ = ("bound", "data", "level")

    def __init__(self, level: Level, data: Any, bound: int = 0) -> None:
        self.level, self.data, self.bound = level, data, bound

    @property
    def values(self) -> list[Any]:
        """The numbers."""
        return self.data if type(self.data) is list else self.data.tolist()

    @property
    def kind(self) -> Any:
        """Their type; all of them if there are several, and bool not alone, since groups that differ in one go different ways."""
        if type(self.data) is not list and self.data.dtype is not torch.bool:
            return float if self.data.is_floating_point() else int
        kinds = set(map(type, self.values))
        return kinds.pop() if kinds == {int} or kinds == {float} else (PerSample, frozenset(kinds))

    def at(self, rows: Any, level: Level) -> Any:
        """Return the numbers of some samples (n), as those of a level."""
        data = self.data
        return per_sample(
            level,
            [data[i] for i in rows.tolist()] if type(data) is list else data.index_select(0, rows),
            self.bound or None,
        )

    def part(self, what: str) -> Part:
        """Return what parts the samples by their number."""
        return Part(self.level, self.data, what)

    def __getattr__(self, name: str) -> Any:
        """Let samples part where an attribute of a number is asked for."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.part(f"the attribute {name!r} of a number")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on tensors and these numbers."""
        if not kwargs and len(args) == 2:
            plain = _OPERATORS.get(getattr(func, "__name__", ""))
            if plain is not None:
                given = beside(plain, *args)
                if given is not None:
                    return func(*given)
        raise first_of([*args, *(kwargs or {}).values()]).part(f"an argument of {getattr(func, '__name__', func)}")


def per_sample(level: Level, data: Any, bound: int | None = None) -> Any:
    """Return numbers as one for each sample; as one number where they are the same.

    Args:
        level: the samples'.
        data: a list of numbers, or a tensor of int64, float64 or bool.
        bound: what no number of an int64 tensor exceeds; None to find out.
    """
    with DisableTorchFunction():
        return _per_sample(level, data, bound)


def _per_sample(level: Level, data: Any, bound: int | None) -> Any:
    if type(data) is list:
        kind = type(data[0])
        if any(type(v) is not kind for v in data) or kind not in _DTYPES:
            return data[0] if len(set(map(key, data))) == 1 else PerSample(level, data)
        if kind is int and max(map(abs, data)) >= _LIMIT:
            return data[0] if all(v == data[0] for v in data) else PerSample(level, data)
        data = torch.tensor(data, dtype=_DTYPES[kind])
    bits = data.view(torch.int64) if data.dtype is torch.float64 else data
    if bool((bits == bits[0]).all()):
        return data[0].item()
    if data.dtype is torch.int64 and bound is None:
        low, high = data.aminmax()
        bound = max(-int(low), int(high))
    return PerSample(level, data, bound or 0)


_DTYPES: dict[type, Any] = {int: torch.int64, float: torch.float64, bool: torch.bool}
_LIMIT = 2**62


def put_together(column: Sequence[Any], levels: Sequence[Level], level: Level) -> Any:
    """Return the numbers of several groups, each one for all of its samples or one for each, as those of all."""
    datas: list[Any] = []
    for k, own in zip(column, levels, strict=True):
        if type(k) is PerSample:
            datas.append(k.data)
        elif type(k) is float or abs(k) < _LIMIT:
            datas.append(torch.full((own.batch_size,), k, dtype=_DTYPES[type(k)]))
        else:
            datas.append([k] * own.batch_size)
    if any(type(d) is list for d in datas):
        return per_sample(level, [v for d in datas for v in (d if type(d) is list else d.tolist())])
    return per_sample(level, torch.cat(datas))


def elementwise(func: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Return what a function of Python numbers gives for each sample."""
    level = first_of(args).level
    with DisableTorchFunction():  # numbers are below all levels
        found = _at_once(func, args)
    if found is not None:
        return per_sample(level, *found)
    columns = [a.values if type(a) is PerSample else [a] * level.batch_size for a in args]
    try:
        out = [func(*row) for row in zip(*columns, strict=True)]
    except Exception as e:
        e._vmap_of_some = True  # type: ignore[attr-defined]
        raise
    if any(type(v) not in _DTYPES for v in out):  # text, pairs: whoever gets them wants one
        raise first_of(args).part(f"an argument of {getattr(func, '__name__', func)}")
    return per_sample(level, out)


def _at_once(func: Callable[..., Any], args: Sequence[Any]) -> tuple[Any, int | None] | None:
    """Return what it gives as a tensor, and its bound, where the tensor's arithmetic is Python's; None else."""
    operation = _TENSORS.get(func)
    if operation is None or len(args) != 2:
        return None
    datas: list[Any] = []
    bounds: list[int] = []
    for a in args:
        data = a.data if type(a) is PerSample else a
        if type(data) is list or (not isinstance(data, torch.Tensor) and type(data) not in (int, float)):
            return None
        datas.append(data)
        bounds.append(a.bound if type(a) is PerSample else abs(a) if type(a) is int else 0)
    kinds = {d.dtype if isinstance(d, torch.Tensor) else _DTYPES[type(d)] for d in datas}
    if torch.bool in kinds or len(kinds) > 1 or max(bounds) >= _LIMIT:
        return None
    is_int = torch.int64 in kinds
    limit = bounds[0] * bounds[1] if func is operator.mul else bounds[0] + bounds[1]
    if is_int and limit >= _LIMIT:
        return None
    if func in _DIVIDES and (not is_int or bool((torch.as_tensor(datas[1]) == 0).any())):
        return None
    out = operation(*datas)
    return out, limit if out.dtype is torch.int64 else None


def first_of(args: Sequence[Any]) -> PerSample:
    """Return the first of these numbers among arguments, or in lists and tuples of them."""
    for a in args:
        if type(a) is PerSample:
            return a
        if isinstance(a, list | tuple):
            found: Any = first_of(a)
            if found is not None:
                return found
    return None  # type: ignore[return-value]


def holds(x: Any, depth: int = 8) -> bool:
    """Tell whether an argument is one of these numbers, or a list, tuple, dict or slice with one in it."""
    if not depth:
        return False
    kind = type(x)
    if kind is PerSample:
        return True
    if kind is list or kind is tuple:
        return any(holds(v, depth - 1) for v in x)
    if kind is dict:
        return any(holds(v, depth - 1) for v in x.values())
    return kind is slice and (holds(x.start) or holds(x.stop) or holds(x.step))


def beside(plain: Any, a: Any, b: Any) -> tuple[Any, Any] | None:
    """Return the operands of an operator with the numbers as a tensor, where that gives the same; None else.

    A tensor without dims ranks below one that has some, as a number does; so it is given the other one's dtype.
    """
    x, k = (a, b) if type(b) is PerSample else (b, a)
    if not isinstance(x, torch.Tensor) or type(k) is not PerSample:
        return None
    dtype, data = x.dtype, k.data
    if type(data) is list or data.dtype is torch.bool or dtype not in _EXACT:
        return None
    if not dtype.is_floating_point and (data.is_floating_point() or plain is operator.truediv or k.bound >= 2**31):
        return None
    number = make_batched(data.to(dtype).to(x.device), 0, k.level)
    return (x, number) if k is b else (number, x)


_EXACT = {torch.float32, torch.float64, torch.int64, torch.int32}


def number(kind: Any, x: Any) -> Any:
    """Return ``int(x)``, ``float(x)`` or ``bool(x)`` of a batched tensor or of numbers."""
    return elementwise(kind, [x]) if type(x) is PerSample else _read(kind, x, kind)


def item(x: Any) -> Any:
    """Return ``x.item()``."""
    return _read(lambda x: x.item(), x, lambda answer: answer)


def _read(read: Callable[[Any], Any], x: Any, of: Callable[[Any], Any]) -> Any:
    """Return what is read of a tensor; where samples differ, what each one's answer is made to."""
    try:
        return read(x)
    except Part as part:
        is_its = type(x) is BatchedTensor and part.level is x._level and x._bdim is not None
        if is_its and part.rows is not None and x.numel() == 1:
            return per_sample(part.level, [of(answer) for answer in part.answers])
        raise


def _binary(plain: Callable[[Any, Any], Any], swapped: bool) -> Callable[[Any, Any], Any]:
    def run(self: Any, other: Any) -> Any:
        a, b = (other, self) if swapped else (self, other)
        if isinstance(other, torch.Tensor):
            given = beside(plain, a, b)
            if given is None:
                raise self.part("a number beside a tensor")
            return plain(*given)
        return elementwise(plain, (a, b))

    return run


def _unary(plain: Any) -> Callable[[Any], Any]:
    return lambda self: elementwise(plain, (self,))


def _parts(name: str, what: str) -> Callable[..., Any]:
    def run(self: Any, *args: Any) -> Any:
        raise self.part(what)

    run.__name__ = name
    return run


_ARITHMETIC = ("add", "sub", "mul", "truediv")
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
# Operators that give the same for a tensor without dims as for a number, by the names of PyTorch's functions and methods.
_OPERATORS: dict[str, Any] = {}
for _name in _ARITHMETIC:
    _plain = getattr(operator, _name)
    setattr(PerSample, f"__{_name}__", _binary(_plain, False))
    setattr(PerSample, f"__r{_name}__", _binary(_plain, True))
    _OPERATORS.update({f"__{_name}__": _plain, f"__i{_name}__": _plain, f"__r{_name}__": _plain, _name: _plain})
_OPERATORS.update({"div": operator.truediv, "true_divide": operator.truediv, "__div__": operator.truediv})
for _name in _COMPARISONS:
    _plain = getattr(operator, _name)
    setattr(PerSample, f"__{_name}__", _binary(_plain, False))
    _OPERATORS.update({f"__{_name}__": _plain, _name: _plain})
for _name, _plain in {
    "floordiv": operator.floordiv, "mod": operator.mod, "pow": operator.pow, "and": operator.and_, "or": operator.or_,
    "xor": operator.xor, "lshift": operator.lshift, "rshift": operator.rshift, "divmod": divmod,
}.items():  # fmt: skip
    setattr(PerSample, f"__{_name}__", _binary(_plain, False))
    setattr(PerSample, f"__r{_name}__", _binary(_plain, True))
for _name, _plain in {
    "neg": operator.neg, "pos": operator.pos, "abs": abs, "invert": operator.invert, "round": round, "trunc": math.trunc,
    "floor": math.floor, "ceil": math.ceil,
}.items():  # fmt: skip
    setattr(PerSample, f"__{_name}__", _unary(_plain))
for _name, _what in {
    "index": "a number as an index or a size", "bool": "the truth of a number", "int": "int() of a number",
    "float": "float() of a number", "complex": "complex() of a number", "hash": "a number as a key", "str": "a number as text",
    "repr": "a number as text", "format": "a number as text",
}.items():  # fmt: skip
    setattr(PerSample, f"__{_name}__", _parts(f"__{_name}__", _what))


def _pure(module: Any) -> set[Any]:
    return {f for f in vars(module).values() if callable(f) and type(f) is type(len)}


_TENSORS: dict[Any, Any] = {
    operator.add: torch.add, operator.sub: torch.sub, operator.mul: torch.mul, operator.lt: torch.lt, operator.le: torch.le,
    operator.gt: torch.gt, operator.ge: torch.ge, operator.eq: torch.eq, operator.ne: torch.ne, operator.mod: torch.remainder,
    operator.floordiv: torch.floor_divide,
}  # fmt: skip
_DIVIDES = {operator.mod, operator.floordiv}

PURE: set[Any] = _pure(math) | {
    int, float, bool, complex, str, abs, round, min, max, divmod, pow, isinstance, repr, builtins.format, hash, bin, hex, chr,
}  # fmt: skip
"""Functions of Python that compute with numbers and do nothing else: run for each sample."""
KEEPS: set[Any] = {list, tuple, set, dict, len, iter, slice, zip, enumerate, reversed, id}
"""Functions that hold their arguments, or look at their structure, and do not look at a number itself."""
