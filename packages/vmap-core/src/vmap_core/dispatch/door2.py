"""Calls that go through PyTorch's dispatcher (door 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedError, user_location
from ..levels.args import any_batched
from ..levels.level import Level
from ..torch_compat.operators import OpOverload, OpOverloadPacket, is_random
from .general import unbatched_run
from .inplace import unrepeated
from .lowering import run_lowered
from .plan import Run


def parts_run(func: Any, op: OpOverload | None) -> Run:
    """Make what runs a call natively on lowered tensors: what it is made of comes back through the dispatcher."""
    run_unbatched = unbatched_run(func, op)
    writes = op is None and getattr(func, "__name__", "").endswith("_")  # in place, with arguments that no schema has
    draws = is_random(func)
    run = native(func, op)
    mutates = op is not None and op._schema.is_mutable

    def parts(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if draws or any_batched(level, args, kwargs):
            return run_lowered(level, run, args, kwargs, mutates=mutates)
        if writes:
            with unrepeated(level, func, args[:1]):
                return run_unbatched(level, args, kwargs)
        return run_unbatched(level, args, kwargs)

    return parts


def native(func: Any, op: OpOverload | None) -> Callable[..., Any]:
    """Return what runs a composite on lowered tensors, down to the operations it is made of."""
    if not isinstance(func, OpOverload | OpOverloadPacket) or op is None:
        return func

    def decompose(*args: Any, **kwargs: Any) -> Any:
        out = op.decompose(*args, **kwargs)
        if out is NotImplemented:
            raise UnsupportedError(f"vmap: {op} has no batching rule and no parts, at {user_location()}")
        return out

    return decompose
