"""The loop over the batch: what runs when nothing better is known. Right for every operation, never fast."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import FallbackError, FallbackWarning, UnsupportedError, user_frame, user_location
from ..levels.containers import children, dims_like, leaves, map_leaves, map_with_dims, rebuild
from ..levels.level import Level
from ..levels.randomness import drawn, draws, may_draw_unannounced, refuse_unannounced, rewinding, snapshot
from ..torch_compat.bindings import emitter
from ..torch_compat.tensors import fake_tensors
from .packs import install_hint
from .rule import RuleFunction

Policy = Literal["warn", "error", "silent"]
_policy: contextvars.ContextVar[Policy | None] = contextvars.ContextVar("vmap_fallback_policy", default=None)
_global_policy: Policy = "warn"
_listener: contextvars.ContextVar[Callable[[Any, str], None] | None] = contextvars.ContextVar(
    "vmap_loops", default=None
)


def set_fallback_policy(policy: Policy) -> None:
    """Choose what happens when an operation runs in the slow loop.

    Args:
        policy: ``"warn"`` issues a FallbackWarning, ``"error"`` raises FallbackError, ``"silent"`` does neither.

    Examples:
        >>> import vmap_core
        >>> vmap_core.set_fallback_policy("warn")
    """
    global _global_policy
    if policy not in ("warn", "error", "silent"):
        raise ValueError(f"fallback policy must be 'warn', 'error' or 'silent', got {policy!r}")
    _global_policy = policy


@contextlib.contextmanager
def fallback_policy(policy: Policy) -> Iterator[None]:
    """Choose the fallback policy within a ``with`` block, in this thread.

    Examples:
        >>> import torch, vmap_core
        >>> with vmap_core.fallback_policy("error"):
        ...     vmap_core.vmap(torch.sin)(torch.zeros(2))
        tensor([0., 0.])
    """
    if policy not in ("warn", "error", "silent"):
        raise ValueError(f"fallback policy must be 'warn', 'error' or 'silent', got {policy!r}")
    token = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(token)


@contextlib.contextmanager
def listener(note: Callable[[Any, str], None]) -> Iterator[None]:
    """Call ``note(op, message)`` for each operation that runs in the loop, within a ``with`` block."""
    token = _listener.set(note)
    try:
        yield
    finally:
        _listener.reset(token)


def report(op: Any, why: str = "has no batching rule", hint: str = "") -> None:
    """Say that an operation runs in the loop, as the policy asks.

    Args:
        op: the operator, or the name of what else runs in it.
        why: says so of the operator.
        hint: what to do; without, how to get a rule.
    """
    policy = _policy.get() or _global_policy
    note = _listener.get()
    if policy == "silent" and note is None:
        return
    hint = hint or install_hint(op)
    message = f"vmap: {op} {why}; it runs in a loop over the batch, at {user_location()}. {hint}"
    if note is not None:
        note(op, message)
    if policy == "silent":
        return
    if policy == "error":
        raise FallbackError(message)
    frame = user_frame()
    if frame is None:
        warnings.warn(FallbackWarning(message, op), stacklevel=2)
    else:
        registry = frame.f_globals.setdefault("__warningregistry__", {})
        module = frame.f_globals.get("__name__", "<unknown>")
        warnings.warn_explicit(
            FallbackWarning(message, op), None, frame.f_code.co_filename, frame.f_lineno, module, registry
        )


def loop_rule(op: Any) -> RuleFunction:
    """Make the rule that runs an operator once per sample; each use warns, as every loop does."""

    def loop_rule(info: Level, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        return loop(info, op, in_dims, *args, **kwargs)

    return loop_rule


def loop(level: Level, op: Any, in_dims: Any, *args: Any, warn: bool = True, **kwargs: Any) -> tuple[Any, Any]:
    """Run an operator once per sample and stack the results.

    Args:
        level: the running level, off the stack.
        op: an overload, or any function of tensors.
        in_dims: batch dim per positional argument; a trailing dict holds those of keyword-only tensors.
        args: physical arguments.
        warn: report it, as the fallback policy asks.
        kwargs: physical keyword arguments.

    Returns:
        The outputs, stacked in front, and their batch dims.
    """
    schema = getattr(op, "_schema", None)
    mutable = schema is not None and schema.is_mutable
    returns_self = schema is not None and mutable and all(r.alias_info is not None for r in schema.returns)
    if schema is not None and not mutable and any(r.alias_info is not None for r in schema.returns):
        raise UnsupportedError(
            f"vmap: {op} returns a view and has no batching rule; a loop could only return copies. "
            f"Called at {user_location()}. Instead: write a rule for it (vmap_core.extend.RulePack.rule)."
        )
    random = draws(op, args, kwargs)
    if random:
        level.require_randomness(op)
    if warn:
        report(op)
    kw_dims = in_dims[len(args)] if len(in_dims) > len(args) else {}
    if random and level.randomness == "same" and all(d is None for d in leaves(in_dims)) and not mutable:
        out = op(*args, **kwargs)  # one draw for all samples, and a result for all
        return out, [None] * len(out) if isinstance(out, list | tuple) else None
    if level.batch_size == 0:
        with rewinding((*args, *kwargs.values())) as rewind:
            out = (None, None) if returns_self else _empty(op, in_dims, kw_dims, args, kwargs)
            if random:
                rewind()
        return out
    rows = []
    same = random and level.randomness == "same"
    before = snapshot((*args, *kwargs.values())) if may_draw_unannounced(op) else None
    with rewinding((*args, *kwargs.values())) if same else contextlib.nullcontext() as rewind:
        run = op if mutable else emitter(op)
        columns = [_samples(level, a, d, mutable) for a, d in zip(args, in_dims, strict=False)]
        named = {k: _samples(level, v, kw_dims[k], mutable) for k, v in kwargs.items() if kw_dims.get(k) is not None}
        for i, *row in zip(range(level.batch_size), *columns, strict=False):
            if rewind is not None and i:
                rewind()
            rows.append(run(*row, **(kwargs if not named else {**kwargs, **{k: next(v) for k, v in named.items()}})))
    if before is not None and drawn(before):
        refuse_unannounced(level, op, "same")
    if returns_self:
        return None, None
    return _stack(rows)


def _samples(level: Level, value: Any, bdim: Any, written: bool) -> Iterator[Any]:
    """Return one argument's samples, one after the other; what all of them share, without end."""
    if isinstance(bdim, list | tuple | dict):
        columns = map_with_dims(lambda v, d: _samples(level, v, d, written), value, bdim)
        return (map_leaves(next, columns) for _ in range(level.batch_size))
    if bdim is None:
        return itertools.repeat(value)
    if written:  # autograd lets no one write to the views that unbind gives
        return (value.select(bdim, i) for i in range(value.shape[bdim]))
    return iter(value.unbind(bdim))


def _stack(rows: list[Any]) -> tuple[Any, Any]:
    first = rows[0]
    if isinstance(first, Tensor):
        if first.layout is not torch.strided and not first.is_sparse and not first.is_nested:
            raise UnsupportedError(
                f"vmap: a {first.layout} tensor for each sample, at {user_location()}: PyTorch has no derivative for a batch of "
                f"those. Instead: a COO tensor (torch.sparse_coo_tensor, to_sparse())."
            )
        return torch.stack(rows), 0
    if children(first) is not None:
        held = [children(row) or () for row in rows]
        if any(len(own) != len(held[0]) for own in held):
            numbers = sorted({len(own) for own in held})
            raise UnsupportedError(f"vmap: the samples give {numbers} results, at {user_location()}")
        pairs = [_stack(list(column)) for column in zip(*held, strict=True)]
        return rebuild(first, [p[0] for p in pairs]), dims_like(first, [p[1] for p in pairs])
    if any(row != first for row in rows):
        raise UnsupportedError(
            f"vmap: the samples give different results {rows[:4]}, which are no tensors, at {user_location()}"
        )
    return first, None


def _empty(op: Any, in_dims: Any, kw_dims: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """No samples: the shapes of the results come from one run on fake tensors."""

    def blank(value: Any, bdim: Any) -> Any:
        if bdim is None:
            return value.clone() if isinstance(value, Tensor) else value  # the operator may write to it
        shape = list(value.shape)
        del shape[bdim]
        return torch.zeros(shape, dtype=value.dtype, device=value.device)

    one = [map_with_dims(blank, a, d) for a, d in zip(args, in_dims, strict=False)]
    one_kwargs = {k: map_with_dims(blank, v, kw_dims.get(k)) for k, v in kwargs.items()}
    try:
        with fake_tensors():
            out = op(*one, **one_kwargs)
    except Exception:  # no shape function: run it on zeros
        out = op(*one, **one_kwargs)

    def none_of(o: Any) -> Any:
        if isinstance(o, Tensor):
            if o.layout != torch.strided:
                raise UnsupportedError(f"vmap: {op} on an empty batch gives no sparse result, at {user_location()}")
            return torch.empty((0, *o.shape), dtype=o.dtype, device=o.device)
        return o

    return map_leaves(none_of, out), map_leaves(lambda o: 0 if isinstance(o, Tensor) else None, out)
