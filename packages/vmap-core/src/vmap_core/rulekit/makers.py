"""Makers of rules for operators of one's own: what the schema does not tell, the name of the maker says.

Each takes an ``OpOverload`` (a custom operator's too) and returns its rule. They serve lists of tensors, keyword-only
and optional tensors, several outputs, and operators that write to their arguments or draw random numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..levels.containers import map_leaves, map_with_dims
from ..levels.layout import same_storage
from ..torch_compat.operators import OpOverload
from .dims import ensure_bdim, logical_rank, pad_rank, promote_like_samples, to_front
from .loop import loop
from .rule import RuleFunction

# (tensor, its batch dim or None, the name of its argument) -> tensor
Prepare = Callable[[Any, Any, str], Any]


def expand_dims(op: OpOverload) -> RuleFunction:
    """Make the rule of an operator that takes leading batch dims, the same ones in every tensor.

    The batch dim goes to the front of every tensor; one that all samples share is expanded, as a view.

    Examples:
        >>> import torch
        >>> from vmap_core.extend import RulePack, expand_dims
        >>> RulePack("acme_solve").family(expand_dims, torch.ops.aten.linalg_solve.default)
    """

    def expand_dims(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _each(op, lambda x, d, _: ensure_bdim(x, d, info.batch_size), in_dims, args, kwargs)
        return _batched_in_front(op(*args, **kwargs))

    return _drawing(op, expand_dims)


def broadcast_all(op: OpOverload) -> RuleFunction:
    """Make the rule of an operator that broadcasts its tensors against each other.

    The batch dim goes to the front, with ones after it where a tensor has fewer dims than another; what all samples
    share stays as it is, but for an operator of several outputs, or one that writes to an argument: not each of them need
    depend on every tensor, so there it is expanded, as a view. An operator that also promotes types, as arithmetic does, is `pointwise`.

    Examples:
        >>> import torch
        >>> from vmap_core.extend import RulePack, broadcast_all
        >>> RulePack("acme_xlogy").family(broadcast_all, torch.ops.aten.xlogy.Tensor)
    """

    one_output = [str(r.type) for r in op._schema.returns] == ["Tensor"] and not op._schema.is_mutable

    def broadcast_all(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        rank = max(logical_rank(x, d) for x, d, _ in _tensors(op, in_dims, args, kwargs))

        def pad(x: Any, d: int | None, _: str) -> Any:
            if d is None and not one_output:
                x, d = x.expand(info.batch_size, *x.shape), 0
            return pad_rank(x, d, rank)

        args, kwargs = _each(op, pad, in_dims, args, kwargs)
        return _batched_in_front(op(*args, **kwargs))

    return _drawing(op, broadcast_all)


def elementwise(op: OpOverload) -> RuleFunction:
    """Make the rule of an elementwise operator with lists, keyword-only tensors or arguments that it writes to."""
    broadcast = broadcast_all(op)

    def elementwise(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        found = list(_tensors(op, in_dims, args, kwargs))
        written = _written(op)
        read = [(x, d) for x, d, name in found if name not in written]
        promoted = iter(promote_like_samples([x for x, _ in read], [d for _, d in read]) if len(read) > 1 else ())
        if len(read) > 1:
            pick: Prepare = lambda x, d, name: x if name in written else next(promoted)  # noqa: E731
            args, kwargs = _each(op, pick, in_dims, args, kwargs)
        return broadcast(info, in_dims, *args, **kwargs)

    return elementwise


def batch_dims(n: int, *, shared: tuple[str, ...] = ()) -> Callable[[OpOverload], RuleFunction]:
    """Make the family of operators whose tensors have ``n`` batch dims in front: the mapped dim joins the first.

    Those dims may broadcast; the outputs have them too. The operator is called once on ``batch size * N`` entries.

    Args:
        n: how many there are, at least one (``bmm`` has one).
        shared: names of arguments without them, such as weights. Where one of these is batched, there is one call for
            each sample, with a warning.

    Raises:
        ValueError: n is less than one.

    Examples:
        >>> import torch
        >>> from vmap_core.extend import RulePack, batch_dims
        >>> RulePack("acme_bmm").family(batch_dims(1), torch.ops.aten.bmm.default)
    """
    if n < 1:
        raise ValueError(
            f"batch_dims: at least one batch dim, got {n}; for any number there are expand_dims, pointwise"
        )

    def family(op: OpOverload) -> RuleFunction:
        def batch_dims(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
            found = [(x, d, name) for x, d, name in _tensors(op, in_dims, args, kwargs)]
            if any(d is not None and name in shared for _, d, name in found):
                return loop(info, op, in_dims, *args, **kwargs)
            if any(logical_rank(x, d) < n and name not in shared for x, d, name in found):
                shapes = [tuple(x.shape) for x, _, _ in found]
                raise RuntimeError(f"{op} takes tensors with {n} batch dims in front; physical shapes {shapes}")
            fronts = [tuple(to_front(x, d).shape)[d is not None :][:n] for x, d, name in found if name not in shared]
            lead = torch.broadcast_shapes(*fronts)
            copies: list[tuple[Any, Any]] = []

            def merge(x: Any, d: int | None, name: str) -> Any:
                if name in shared:
                    return x
                apart = ensure_bdim(x, d, info.batch_size)
                apart = apart.expand(info.batch_size, *lead, *apart.shape[n + 1 :])
                merged = apart.reshape(info.batch_size * lead[0], *apart.shape[2:])
                if name in written and not same_storage(merged, apart):
                    copies.append((apart, merged))
                return merged

            written = _written(op)
            args, kwargs = _each(op, merge, in_dims, args, kwargs)
            out = op(*args, **kwargs)
            for apart, merged in copies:  # where the dims could not be merged in memory
                apart.copy_(merged.reshape(apart.shape))

            def split(o: Any) -> Any:
                return o.reshape(info.batch_size, lead[0], *o.shape[1:]) if isinstance(o, Tensor) else o

            return _batched_in_front(map_leaves(split, out))

        return _drawing(op, batch_dims)

    return family


def sequential(op: OpOverload) -> RuleFunction:
    """Make the rule that runs an operator once for each sample, by its author's choice: without the warning.

    Examples:
        >>> import torch
        >>> from vmap_core.extend import RulePack, sequential
        >>> RulePack("acme_unique").family(sequential, torch.ops.aten.bincount.default)
    """

    def sequential(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        return loop(info, op, in_dims, *args, warn=False, **kwargs)

    return sequential


def _drawing(op: OpOverload, rule: RuleFunction) -> RuleFunction:
    """Complete a rule of an operator that draws: each sample draws for itself, or all draw the same."""
    if torch.Tag.nondeterministic_seeded not in op.tags:
        return rule

    @functools.wraps(rule)
    def drawing(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        info.require_randomness(op)
        dims = _dims_in_front(op, in_dims, args, kwargs)
        if info.randomness == "same" or not any(True for _ in _tensors(op, in_dims, args, kwargs)):
            return loop(info, op, in_dims, *args, warn=False, **kwargs)
        args, kwargs = _each(op, lambda x, d, _: ensure_bdim(x, d, info.batch_size), in_dims, args, kwargs)
        return rule(info, dims, *args, **kwargs)

    return drawing


# A call's tensors, with their batch dims and the names of their arguments.


def _each(op: OpOverload, prepare: Prepare, in_dims: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments with every tensor prepared, those in containers too."""

    def one(value: Any, dims: Any, name: str) -> Any:
        return map_with_dims(lambda x, d: prepare(x, d, name) if isinstance(x, Tensor) else x, value, dims)

    names = [a.name for a in op._schema.arguments]
    kw_dims = in_dims[len(args)] if len(in_dims) > len(args) else {}
    done = [one(a, d, name) for a, d, name in zip(args, in_dims, names, strict=False)]
    return tuple(done), {k: one(v, kw_dims.get(k), k) for k, v in kwargs.items()}


def _tensors(op: OpOverload, in_dims: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any, str]]:
    found: list[tuple[Any, Any, str]] = []

    def note(x: Any, d: Any, name: str) -> Any:
        found.append((x, d, name))
        return x

    _each(op, note, in_dims, args, kwargs)
    return iter(found)


def _dims_in_front(op: OpOverload, in_dims: Any, args: Any, kwargs: Any) -> Any:
    """Return in_dims after every tensor has got its batch dim in front."""
    front = [_in_front(a) for a in args]
    return (*front, {k: _in_front(v) for k, v in kwargs.items()}) if kwargs else front


def _written(op: OpOverload) -> set[str]:
    return {a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write}


def _in_front(x: Any) -> Any:
    """Return the batch dims of tensors that have it in front."""
    return map_leaves(lambda a: 0 if isinstance(a, Tensor) else None, x)


def _batched_in_front(out: Any) -> tuple[Any, Any]:
    return out, _in_front(out)
