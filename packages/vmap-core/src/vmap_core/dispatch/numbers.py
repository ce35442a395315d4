"""Numbers that differ from sample to sample where PyTorch takes one number: alpha, beta, value.

A tensor of no dims may stand there; in the loop its value is read. Where the operation is linear in an argument, that one is
multiplied by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..levels.level import Level
from ..levels.tensor import BatchedTensor
from ..torch_compat.bindings import emitter
from .plan import Run

_OTHER = {"alpha": (1, "other")}
_FIRST = {"value": (1, "tensor1")}
_PRODUCTS = {f: {"beta": (0, "input"), "alpha": (1, f)} for f in ("mat1", "mat", "vec1", "batch1")}
_FACTORS: dict[str, dict[str, tuple[int, str]]] = {  # a number's name -> the argument that it multiplies, place and name
    "add": _OTHER, "sub": _OTHER, "subtract": _OTHER, "rsub": {"alpha": (0, "input")},
    "addcmul": _FIRST, "addcdiv": _FIRST,
    "addmm": _PRODUCTS["mat1"], "addmv": _PRODUCTS["mat"], "addr": _PRODUCTS["vec1"],
    "addbmm": _PRODUCTS["batch1"], "baddbmm": _PRODUCTS["batch1"], "_foreach_add": _OTHER, "_foreach_sub": _OTHER,
}  # fmt: skip


def numbers_run(func: Any, kwargs: dict[str, Any]) -> Run | None:
    """Make what runs calls with such numbers; None if there are none, or the function is not linear in them."""
    name = getattr(func, "__name__", "")
    factors = _FACTORS.get(name.removesuffix("_"))
    found = [n for n, v in kwargs.items() if type(v) is BatchedTensor and factors is not None and n in factors]
    if not found or factors is None:
        return None
    places = {n: factors[n] for n in found}
    emit = emitter(func)
    inplace = name.endswith("_")

    def run(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with level.pushed():
            return _multiplied(emit, places, inplace, list(args), dict(kwargs))

    return run


def _multiplied(
    func: Callable[..., Any], places: dict[str, tuple[int, str]], inplace: bool, args: list[Any], kwargs: dict[str, Any]
) -> Any:
    for name, (place, argument) in places.items():
        number = kwargs.pop(name).detach()
        given: Any = args if place < len(args) else kwargs
        at: Any = place if place < len(args) else argument
        _check(name, number, args[0] if args else kwargs["input"], given[at])
        if isinstance(given[at], list | tuple):
            given[at] = [x * number for x in given[at]]
        else:
            given[at] = given[at].mul_(number) if inplace and not place else given[at] * number
    return func(*args, **kwargs)


def _check(name: str, number: Any, *operands: Any) -> None:
    """Refuse as PyTorch does a number that the result's dtype cannot hold."""
    if number.dim():
        raise TypeError(f"{name} must be a number, not a tensor of shape {tuple(number.shape)}")
    dtype = torch.result_type(*(x[0] if isinstance(x, list | tuple) else x for x in operands))
    fractional = number.is_floating_point() or number.is_complex()
    if fractional and not (dtype.is_floating_point or dtype.is_complex):
        raise RuntimeError(f"For integral input tensors, argument {name} must not be a floating point number.")
    if number.is_complex() and not dtype.is_complex:
        raise RuntimeError(f"For non-complex input tensors, argument {name} must not be a complex number.")
