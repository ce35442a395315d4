"""Operations that write to their arguments: in-place, ``out=``, and mutating custom operators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import InplaceError, RandomnessError, user_location
from ..levels import ownership
from ..levels.args import any_batched, unwrap, unwrap_kwargs, wrap
from ..levels.containers import leaves
from ..levels.level import Level, call
from ..levels.ownership import Origin
from ..levels.randomness import draws
from ..levels.read import every_sample
from ..levels.tensor import BatchedTensor, become
from ..torch_compat.bindings import emitter
from ..torch_compat.operators import RANDOM, OpOverload
from .binding import Arrange
from .general import unbatched_run
from .plan import Run, Served


def inplace_run(func: Any, op: OpOverload, arrange: Arrange | None, served: Served) -> Run:
    """Make what runs an overload that writes to arguments: by a physical rule, or by the overload that does not write."""
    functional, random = served.written, RANDOM in op.tags
    rule = served.rule if functional is None else None
    writes = [(i, a.name) for i, a in enumerate(op._schema.arguments) if _written(a)]
    aliased = bool(op._schema.returns) and op._schema.returns[0].alias_info is not None
    run_unbatched = unbatched_run(func, op)

    def run(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, given_kwargs = args, kwargs
        if arrange is not None:
            args, kwargs = arrange(args, kwargs)
        targets = [args[i] if i < len(args) else kwargs.get(name) for i, name in writes]
        different = False
        if random and draws(op, args, kwargs):
            level.require_randomness(op)
            different = level.randomness == "different"
        if different:
            _require_samples(level, targets)
        if not different and not any_batched(level, args, kwargs):
            with unrepeated(level, op, targets, random):
                out = run_unbatched(level, given, given_kwargs)
            return _returned(op, targets) if aliased or out is None else out
        if functional is not None:
            if torch.is_grad_enabled() and args[0].requires_grad:
                # the derivative may need the value that is about to be overwritten
                args = (call(level, torch.clone, (args[0],), {}), *args[1:])
            result = call(level, functional, args, kwargs)
            write(level, op, targets[0], result)
            return _returned(op, targets)
        for target in targets:
            for t in leaves(target):
                if t is not None:
                    ownership.promote(level, t, op._schema.name)
        values, dims, _ = unwrap(level, args)
        if kwargs:
            kwargs, kw_dims, _ = unwrap_kwargs(level, kwargs)
            if kw_dims:
                dims.append(kw_dims)
        assert rule is not None
        out, out_dims = rule.function(level, tuple(dims), *values, **kwargs)
        return _returned(op, targets) if aliased or out is None else wrap(level, out, out_dims)

    return run


def _require_samples(level: Level, targets: list[Any]) -> None:
    """Raise if numbers that differ by sample are about to be written to a tensor which all samples share."""
    for t in targets:
        inside = type(t) is BatchedTensor and t._level is level and (t._bdim is not None or t._origin is not None)
        if isinstance(t, torch.Tensor) and not inside:
            raise RandomnessError(
                "vmap: Cannot ask for different inplace randomness on an unbatched tensor. This will appear like same "
                "randomness. If this is necessary for your usage, please file an issue with functorch.\n  "
                f"At {user_location()}, in vmap of {level.name!r}. Instead: write to a tensor made inside the function, "
                "or map over this one with in_dims."
            )


@contextlib.contextmanager
def unrepeated(level: Level, op: Any, targets: Any, random: bool = False) -> Iterator[None]:
    """Refuse what a block writes to tensors from outside, if it changes them.

    The loop would write once for every sample, and all but the first would begin with what is written. Numbers that are
    drawn (randomness="same") are the same each time.

    Raises:
        InplaceError: a tensor's values are other ones now; they are put back.
    """
    outside = [t for t in (_outside(level, t) for t in leaves(targets)) if t is not None]
    if not outside or random or level.is_one:
        yield
        return
    with torch.no_grad():
        before = [t.clone() for t in outside]
    yield
    with torch.no_grad():
        for t, old in zip(outside, before, strict=True):
            if t.shape != old.shape or _changed(t, old):
                t.copy_(old)
                raise _shared_update(level, op, t)


def _outside(level: Level, t: Any) -> Any:
    """Return a tensor whose memory comes from outside the mapped function, as it is there; None for one from inside."""
    if type(t) is not BatchedTensor or t._level is not level:
        return t
    return t._value if t._bdim is None and t._origin is None else None


def _changed(new: Any, old: Any) -> bool:
    differ = (new != old) & ~((new != new) & (old != old))  # nan is nan
    return bool(every_sample(differ).any())


def _shared_update(level: Level, op: Any, t: Any) -> InplaceError:
    name = op._schema.name if isinstance(op, OpOverload) else getattr(op, "__name__", op)
    return InplaceError(
        f"vmap: {name} at {user_location()}, in vmap of {level.name!r}, changes a tensor of shape {tuple(t.shape)} from "
        f"outside the mapped function: the loop would do so once for every sample, and the next sample would see it. "
        f"Instead: write to a copy made inside (self.clone()) and return it, or write outside. (For modules that count or "
        f"average in their buffers, such as batch norm in training: vmap_nn.call_with_buffers, module.eval(), or "
        f"track_running_stats=False.)"
    )


def _written(a: Any) -> bool:
    return a.alias_info is not None and a.alias_info.is_write


def _returned(op: OpOverload, targets: list[Any]) -> Any:
    """An in-place operation returns the very tensor it was given."""
    n = len(op._schema.returns)
    return None if n == 0 else targets[0] if n == 1 else tuple(targets[:n])


def write(level: Level, op: object, target: Any, result: Any) -> None:
    """Copy a result into the tensor an in-place operation was called on.

    Raises:
        RuntimeError: shape or dtype of the result do not fit, with PyTorch's own texts.
        InplaceError: the result is batched, the target comes from outside the mapped function.
    """
    batched = type(result) is BatchedTensor and result._level is level and result._bdim is not None
    if result.shape != target.shape:
        raise RuntimeError(
            f"output with shape {list(target.shape)} doesn't match the broadcast shape {list(result.shape)}"
        )
    if not torch.can_cast(result.dtype, target.dtype):
        raise RuntimeError(
            f"result type {_dtype_name(result.dtype)} can't be cast to the desired output type "
            f"{_dtype_name(target.dtype)}"
        )
    if batched or (type(target) is BatchedTensor and target._level is level and target._bdim is not None):
        name = op._schema.name if isinstance(op, OpOverload) else getattr(op, "__name__", op)
        ownership.promote(level, target, name)
    if type(target) is BatchedTensor and target._level is level:
        value = result._value if type(result) is BatchedTensor and result._level is level else result
        if batched:
            value = value.movedim(result._bdim, target._bdim)
        elif target._bdim is not None:
            value = value.unsqueeze(target._bdim)
        target._value.copy_(value)
    else:
        target.copy_(result)


def _dtype_name(dtype: torch.dtype) -> str:
    return {torch.float32: "Float", torch.float64: "Double", torch.int64: "Long", torch.int32: "Int",
            torch.bool: "Bool", torch.float16: "Half"}.get(dtype, str(dtype))  # fmt: skip


def write_out(level: Level, func: Any, target: Any, result: Any) -> None:
    """Write a result to an ``out=`` argument, resizing it as PyTorch does."""
    if target.shape != result.shape and type(target) is BatchedTensor and target._level is level:
        # resize_ leaves the values undefined; the level owns the tensor, so it takes the result's place
        if not torch.can_cast(result.dtype, target.dtype):
            raise RuntimeError(
                f"result type {_dtype_name(result.dtype)} can't be cast to the desired output type {_dtype_name(target.dtype)}"
            )
        with level.pushed():
            result = result.to(target.dtype)
        become(target, result._value, result._bdim, result._origin)
        return
    write(level, func, target, result)


def metadata_run(op: OpOverload, functional: OpOverload, arrange: Arrange | None) -> Run:
    """Make what runs ``x.t_()``, ``x.unsqueeze_(0)``: the same tensor object, showing the view from now on."""

    def run(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if arrange is not None:
            args, kwargs = arrange(args, kwargs)
        x = args[0]
        if type(x) is not BatchedTensor or x._level is not level:
            if not level.is_one:
                raise _shared_update(level, op, x)
            return emitter(op)(*args, **kwargs)
        if x._bdim is None and type(x._origin) is Origin:
            if x._origin.base is not None or any(ref() is not None for ref in x._origin.views):
                ownership.promote(level, x, op)  # views could not be made again, of what x shows next or by what made x
        viewed = call(level, functional, args, kwargs)
        if type(viewed) is BatchedTensor and viewed is not x:
            own = x._origin
            become(x, viewed._value, viewed._bdim, own if type(own) is Origin else viewed._origin)
        return x

    return run
