"""`custom_vmap` and `sequential_vmap`: functions in Python that say themselves how they are mapped."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..dispatch.plan import Served
from ..errors import UnsupportedError, function_name, user_location
from ..levels import tree as _tree
from ..levels.args import unwrap, wrap
from ..levels.containers import map_leaves
from ..levels.layout import same_storage
from ..levels.level import Level
from ..levels.randomness import drawn, rewinding, snapshot
from ..rulekit.checked import run_rule
from ..rulekit.rule import RuleFunction
from ..torch_compat.mode_stack import pop_mode, push_mode
from ..torch_compat.one_graph import Transform, applied, show_as


class CustomVmap:
    """A function with a batching rule of its own; see `custom_vmap`."""

    how = "a rule of its own"  # what `explain` says

    def __init__(self, func: Callable[..., Any]) -> None:
        """Wrap a function; without a rule it is mapped like any other."""
        functools.update_wrapper(self, func)
        self.func = func
        self.rule: RuleFunction | None = None

    def def_vmap(self, rule: RuleFunction) -> RuleFunction:
        """Decorate the batching rule, ``(info, in_dims, *args, **kwargs) -> (output, out_dims)``."""
        self.rule = rule
        return rule

    def with_function(self, func: Callable[..., Any]) -> CustomVmap:
        """Return a copy with another function, such as a recording of it."""
        copy = CustomVmap(self.func)
        copy.func, copy.rule, copy.how = func, self.rule, self.how
        return copy

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Bind like a function, so that methods can be decorated."""
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, or its rule where an argument is batched."""
        if self.rule is None:
            return self.func(*args, **kwargs)
        return _at_a_level(self, args, kwargs)

    def run_at(self, level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the rule for what is batched at a level, which is off the stack."""
        leaves: list[Any] = []
        spec = _tree.flatten((args, kwargs), leaves)
        values, dims, batched = unwrap(level, leaves)
        own_args, own_kwargs = _tree.unflatten(spec, iter(values))
        if not batched:  # a level further out may have something for the rule
            return map_leaves(lambda out: _unbatched(level, out, values), self(*own_args, **own_kwargs))
        in_dims, kw_dims = _tree.unflatten(spec, iter(dims))
        assert self.rule is not None
        in_dims = (*in_dims, kw_dims) if kw_dims else in_dims
        return wrap(level, *run_rule(self.rule, function_name(self), level, in_dims, own_args, own_kwargs))


def _at_a_level(custom: CustomVmap, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the rule of a function at the innermost level, or the function where there is none."""
    try:
        level = pop_mode()
    except RuntimeError:  # not mapped
        return custom.func(*args, **kwargs)
    try:
        if type(level) is Level:
            return level.table.run_of((custom,), custom.run_at, Served(custom.how))(level, args, kwargs)
    finally:
        push_mode(level)
    return custom.func(*args, **kwargs)  # under a mode of the user's


def _seen(custom: CustomVmap, args: Any, kwargs: Any) -> Any:
    return applied("custom_vmap", custom.func, args, kwargs, (), (custom,), {})


def _apply(func: Any, args: Any, kwargs: Any, more: Any, custom: CustomVmap) -> Any:
    return custom.with_function(func)(*args, **kwargs)


def _samples(args: Any, kwargs: Any, more: Any, custom: CustomVmap) -> Any:
    return args, kwargs


show_as(_at_a_level, _seen, {"custom_vmap": Transform(_apply, _samples)})


def _unbatched(level: Level, out: Any, values: list[Any]) -> Any:
    """Return what a level further out made; what is a view of an argument stays a tensor from outside."""
    aliases = isinstance(out, Tensor) and any(isinstance(v, Tensor) and same_storage(out, v) for v in values)
    return out if aliases else wrap(level, out, None)


def custom_vmap(func: Callable[..., Any]) -> CustomVmap:
    """Give a function in Python its own batching rule.

    Rule and function are ordinary PyTorch code: gradients in both modes, nesting, and other rules work inside. The rule
    runs at the innermost level at which an argument is batched, on physical values; levels further out map what it
    calls. It may take other operations than the function, not another meaning: the result has to equal the loop.

    Args:
        func: takes and returns tensors, or nested containers of them.

    Returns:
        The function; its ``def_vmap`` decorates the rule, which gets the level (``batch_size``, ``randomness``), a batch
        dim or None for each argument (nested like it; keyword arguments in a trailing dict), and the arguments.

    Examples:
        >>> import torch
        >>> from vmap_core import custom_vmap, vmap
        >>> @custom_vmap
        ... def solve(a, b):  # (n, n), (n) -> (n)
        ...     return torch.linalg.solve(a, b)
        >>> @solve.def_vmap
        ... def rule(info, in_dims, a, b):
        ...     if in_dims == (None, 0):  # one matrix for all: one factorisation
        ...         return torch.linalg.solve(a, b.mT).mT, 0
        ...     a = a.expand(info.batch_size, *a.shape) if in_dims[0] is None else a.movedim(in_dims[0], 0)
        ...     b = b.expand(info.batch_size, *b.shape) if in_dims[1] is None else b.movedim(in_dims[1], 0)
        ...     return torch.linalg.solve(a, b.unsqueeze(-1)).squeeze(-1), 0
        >>> vmap(solve, in_dims=(None, 0))(torch.eye(2), torch.ones(3, 2)).shape
        torch.Size([3, 2])

    It takes after JAX's ``custom_batching.custom_vmap``
    (https://docs.jax.dev/en/latest/_autosummary/jax.custom_batching.custom_vmap.html).
    """
    return CustomVmap(func)


def sequential_vmap(func: Callable[..., Any]) -> CustomVmap:
    """Map a function by a loop over the samples, without a warning: it may read values and branch on them.

    Args:
        func: takes tensors, or nested containers of them; returns tensors of one shape for all samples, and other
            values that all samples agree on.

    Returns:
        The function.

    Raises:
        UnsupportedError: when called, if the outputs of samples cannot be stacked.

    Examples:
        >>> import torch
        >>> from vmap_core import sequential_vmap, vmap
        >>> @sequential_vmap
        ... def collatz(n):  # () -> (): the number of steps down to 1
        ...     steps = 0
        ...     while n > 1:
        ...         n, steps = (3 * n + 1 if n % 2 else n // 2), steps + 1
        ...     return torch.tensor(steps)
        >>> vmap(collatz)(torch.arange(1, 6))
        tensor([0, 1, 7, 2, 5])

    It takes after JAX's ``custom_batching.sequential_vmap``.
    """
    mapped = CustomVmap(func)
    mapped.how = "a loop over the samples, on purpose"

    @mapped.def_vmap
    def loop(info: Level, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        leaves: list[Any] = []
        spec = _tree.flatten((args, kwargs), leaves)
        flat_dims = _tree.broadcast(_paired(in_dims, args, kwargs), spec)
        assert flat_dims is not None
        size = info.batch_size

        def one(x: Any, d: int | None, i: int) -> Any:
            if d is None:
                return x
            return x.select(d, i) if size else x.new_zeros([n for k, n in enumerate(x.shape) if k != d])

        def sample(i: int) -> tuple[Any, list[Any]]:
            row = iter([one(x, d, i) for x, d in zip(leaves, flat_dims, strict=True)])
            own_args, own_kwargs = _tree.unflatten(spec, row)
            flat: list[Any] = []
            return _tree.flatten(mapped(*own_args, **own_kwargs), flat), flat

        before = snapshot(leaves)
        same = info.randomness == "same"
        with rewinding(leaves) if same else contextlib.nullcontext() as rewind:
            rows = []
            for i in range(size):
                if rewind is not None and i:
                    rewind()
                rows.append(sample(i))
        if drawn(before):
            info.require_randomness(mapped.__name__)  # type: ignore[attr-defined]
        out_spec, first = rows[0] if rows else sample(0)  # of an empty batch: of zeros, for its shape
        columns = list(zip(*(flat for _, flat in rows), strict=True)) if rows else [()] * len(first)
        outs = [_stacked(mapped, one, column) for one, column in zip(first, columns, strict=True)]
        out_dims = [0 if isinstance(o, Tensor) else None for o in outs]
        return _tree.unflatten(out_spec, iter(outs)), _tree.unflatten(out_spec, iter(out_dims))

    return mapped


def _paired(in_dims: Any, args: Any, kwargs: Any) -> Any:
    return (in_dims[: len(args)], in_dims[len(args)] if kwargs else {})


def _stacked(mapped: Any, first: Any, column: tuple[Any, ...]) -> Any:
    if isinstance(first, Tensor):
        if any(t.shape != first.shape or t.dtype != first.dtype for t in column):
            shapes = sorted({tuple(t.shape) for t in column})
            raise UnsupportedError(
                f"vmap: {mapped.__name__} gives tensors of different shapes or dtypes for different samples, {shapes}, at "
                f"{user_location()}. Instead: return tensors of one shape, padded if need be."
            )
        return torch.stack(column) if column else first.new_empty(0, *first.shape)
    if any(value != first for value in column):
        raise UnsupportedError(
            f"vmap: {mapped.__name__} gives values that differ from sample to sample, {column[:4]}, at {user_location()}. "
            f"Instead: return tensors."
        )
    return first
