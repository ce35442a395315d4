"""Calls with ``out=`` or ``requires_grad=``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import function_name
from ..levels import ownership
from ..levels.args import any_batched
from ..levels.containers import leaves
from ..levels.level import Level, call
from ..rulekit.asking import asker
from ..torch_compat.operators import OpOverload, is_random
from . import inplace
from .general import unbatched_run
from .plan import Run


def names_of_out(func: Any) -> list[str]:
    """Return the names of the arguments that a function writes its results to."""
    if not isinstance(func, OpOverload):
        return ["out"]
    return [a.name for a in func._schema.arguments if a.is_out]


def out_run(func: Any, names: list[str]) -> Run:
    """Make what runs ``f(..., out=t)``: compute without it, then write the result to ``t``."""
    functional = func.overloadpacket if isinstance(func, OpOverload) else func
    # a random operation draws per sample whatever its arguments are
    random = is_random(functional)
    run_unbatched = unbatched_run(func, None)
    ask = asker(func)

    def run(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = kwargs[names[0]] if len(names) == 1 else [kwargs[name] for name in names]
        if not random and not any_batched(level, args, kwargs):
            with inplace.unrepeated(level, func, [out]):
                run_unbatched(level, args, kwargs)
            return out
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in leaves((args, kwargs))):
            raise RuntimeError(
                f"{function_name(functional)}(): functions with out=... arguments don't support automatic differentiation, but "
                f"one of the arguments requires grad."
            )
        rest = {k: v for k, v in kwargs.items() if k not in names}
        if functional is torch.sum and "dtype" not in rest:  # it adds in the dtype of what it writes to
            rest["dtype"] = kwargs["out"].dtype
        results = call(level, functional, args, rest)
        if not random and _dtypes(out) != _dtypes(results):
            ask(level, None, args, kwargs)
        if isinstance(out, Tensor):
            inplace.write_out(level, func, out, results)
        else:
            for target, result in zip(out, results, strict=True):
                inplace.write_out(level, func, target, result)
        return out

    return run


def _dtypes(written: Any) -> list[torch.dtype]:
    return [t.dtype for t in ((written,) if isinstance(written, Tensor) else written)]


def factory_run(func: Any) -> Run:
    """Make what runs ``f(..., requires_grad=flag)``: the schemas do not have that argument."""

    def run(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rest = {k: v for k, v in kwargs.items() if k != "requires_grad"}
        result = call(level, func, args, rest)
        return ownership.requires_grad_(level, result) if kwargs["requires_grad"] else result

    return run
