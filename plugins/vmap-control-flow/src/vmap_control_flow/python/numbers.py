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

from .parting import Part


class PerSample:
    """A Python number, or bool, for each sample of a level.

    Attributes:
        values: in the order of the level's samples.
        level: the level.
    """

    __slots__ = ("level", "values")

    def __init__(self, level: Level, values: list[Any]) -> None:
        self.level, self.values = level, values

    def part(self, what: str) -> Part:
        """Return what parts the samples by their number."""
        return Part(self.level, self.values, what)

    def __getattr__(self, name: str) -> Any:
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


def per_sample(level: Level, values: list[Any]) -> Any:
    """Return numbers as one for each sample; as one number where they are the same."""
    first = values[0]
    kind = type(first)
    if kind is not float and all(v == first and type(v) is kind for v in values):
        return first
    if kind is float and all(type(v) is float and _same(v, first) for v in values):
        return first
    return PerSample(level, values)


def _same(a: float, b: float) -> bool:
    return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)


def elementwise(func: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Return what a function of Python numbers gives for each sample."""
    level = first_of(args).level
    columns = [a.values if type(a) is PerSample else [a] * level.batch_size for a in args]
    return per_sample(level, [func(*row) for row in zip(*columns, strict=True)])


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


def holds(x: Any) -> bool:
    """Tell whether an argument is one of these numbers, or a list, tuple, dict or slice with one in it."""
    kind = type(x)
    if kind is PerSample:
        return True
    if kind is list or kind is tuple:
        return any(map(holds, x))
    if kind is dict:
        return any(map(holds, x.values()))
    return kind is slice and (holds(x.start) or holds(x.stop) or holds(x.step))


def beside(plain: Any, a: Any, b: Any) -> tuple[Any, Any] | None:
    """Return the operands of an operator with the numbers as a tensor, where that gives the same; None else.

    A tensor without dims ranks below one that has some, as a number does; so it is given the other one's dtype.
    """
    x, k = (a, b) if type(b) is PerSample else (b, a)
    if not isinstance(x, torch.Tensor) or type(k) is not PerSample:
        return None
    dtype, kinds = x.dtype, set(map(type, k.values))
    if not kinds <= {int, float} or dtype not in _EXACT or (float in kinds and not dtype.is_floating_point):
        return None
    if plain is operator.truediv and not dtype.is_floating_point:
        return None
    exact = torch.float64 if float in kinds else torch.int64
    try:
        values = torch.tensor(k.values, dtype=exact).to(dtype)
    except (RuntimeError, OverflowError):
        return None
    if not dtype.is_floating_point and values.tolist() != k.values:
        return None
    number = make_batched(values.to(x.device), 0, k.level)
    return (x, number) if k is b else (number, x)


_EXACT = {torch.float32, torch.float64, torch.int64, torch.int32}


def number(kind: Any, x: Any) -> Any:
    """Return ``int(x)``, ``float(x)`` or ``bool(x)`` of a batched tensor or of numbers."""
    if type(x) is PerSample:
        return elementwise(kind, [x])
    try:
        return kind(x)
    except Part as part:
        if type(x) is BatchedTensor and part.level is x._level and part.rows is not None and x.numel() == 1 and x._bdim is not None:
            return per_sample(part.level, [kind(v) for v in part.answers])
        raise


def item(x: Any) -> Any:
    """Return ``x.item()``."""
    try:
        return x.item()
    except Part as part:
        if type(x) is BatchedTensor and part.level is x._level and part.rows is not None and x.numel() == 1 and x._bdim is not None:
            return per_sample(part.level, part.answers)
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


def _unary(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
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


PURE: set[Any] = _pure(math) | _pure(operator) | {
    int, float, bool, complex, str, abs, round, min, max, divmod, pow, isinstance, type, repr, builtins.format, hash, bin, hex, chr,
}  # fmt: skip
"""Functions of Python that compute with numbers and do nothing else: run for each sample."""
KEEPS: set[Any] = {list, tuple, set, dict, len, iter, slice, zip, enumerate, reversed, id}
"""Functions that hold their arguments, or look at their structure, and do not look at a number itself."""
