"""Families: makers of batching rules for operators of one shape, and the rule each operator's schema suggests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..torch_compat.bindings import emitter
from ..torch_compat.operators import OpOverload
from .asking import asker
from .by_shape import by_shape
from .dims import align, below, lie_alike, logical_rank, physical_dims, promote_like_samples
from .makers import elementwise
from .rule import Rule


def pointwise(op: OpOverload) -> Rule:
    """Make the rule of an elementwise operator: align the batch dims, call it once."""
    if _is_special(op) or len(op._schema.returns) > 1:
        return Rule(elementwise(op))
    emit, ask = emitter(op), asker(op)
    # where() and masked_fill() take a bool that has no part in type promotion
    conditions = [i for i, a in enumerate(op._schema.arguments) if a.name in ("condition", "mask")]

    def pointwise(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1:
            return emit(args[0], **kwargs), in_dims[0]
        bdim = _agreed(args, in_dims)
        if bdim is not None and (not bdim or lie_alike([a for a in args if isinstance(a, torch.Tensor)])):
            return emit(*args, **kwargs), bdim
        promoted = _promote(args, in_dims, conditions)
        if any(p is not a for p, a in zip(promoted, args, strict=True)):  # not every operator promotes
            ask(info, in_dims, args, kwargs)
        aligned, bdim = align(promoted, in_dims)
        return emit(*aligned, **kwargs), bdim

    return Rule(pointwise, agreeing=emit)


def _agreed(args: Any, in_dims: Any) -> int | None:
    """Return the batch dim that all tensors have, at one rank; they broadcast and promote as the samples do."""
    bdim = ndim = None
    for a, d in zip(args, in_dims, strict=False):
        if d is None:
            if isinstance(a, torch.Tensor):
                return None
        elif bdim is None:
            bdim, ndim = d, a.ndim
        elif d != bdim or a.ndim != ndim:
            return None
    return bdim


def _promote(args: Any, in_dims: Any, conditions: list[int]) -> Any:
    if not conditions:
        return promote_like_samples(args, in_dims)
    hidden = [None if i in conditions else a for i, a in enumerate(args)]
    if not any(isinstance(a, torch.Tensor) for a in hidden):
        return args
    promoted = promote_like_samples(hidden, in_dims)
    return [args[i] if i in conditions else a for i, a in enumerate(promoted)]


def pointwise_inplace(op: OpOverload) -> Rule:
    """Make the rule of an in-place elementwise operator: the others are aligned to self, which stays in place."""
    name = op._schema.name.partition("::")[2]
    conditions = [i for i, a in enumerate(op._schema.arguments) if a.name in ("condition", "mask")]

    def pointwise_inplace(info: Any, in_dims: Any, self: Any, *others: Any, **kwargs: Any) -> Any:
        bdim = in_dims[0]
        args = _promote((self, *others), in_dims[: 1 + len(others)], conditions)
        rank = self.ndim - 1
        aligned = []
        for a, d in zip(args[1:], in_dims[1:], strict=False):
            if not isinstance(a, torch.Tensor):
                aligned.append(a)
                continue
            if logical_rank(a, d) > rank:
                shape = list(self.shape)
                del shape[bdim]
                got = list(a.shape)
                if d is not None:
                    del got[d]
                raise RuntimeError(f"output with shape {shape} doesn't match the broadcast shape {got}")
            if d is None:
                a = a.unsqueeze(a.ndim - (rank - bdim)) if a.ndim > rank - bdim else a
            else:
                a = below(a, d, rank, bdim)
            aligned.append(a)
        getattr(self, name)(*aligned, **kwargs) if hasattr(self, name) else op(self, *aligned, **kwargs)
        return self, bdim

    return Rule(pointwise_inplace, inplace_method=name if hasattr(torch.Tensor, name) else None)


def reduction(op: OpOverload) -> Rule:
    """Make the rule of an operator that reduces over ``dim`` (an int, a list, or None for all dims).

    The batch dim stays where it is; the dims to reduce are counted around it.
    """
    _refuse_special(op, "reduction")
    names = [a.name for a in op._schema.arguments]
    dim_at = names.index("dim")
    keep_at = names.index("keepdim") if "keepdim" in names else None
    takes_list = "List" in str(op._schema.arguments[dim_at].type)
    emit = emitter(op)

    def reduction(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        bdim = in_dims[0]
        rank = x.ndim - 1
        if len(args) == dim_at == 1 and type(args[0]) is int and rank and -rank <= args[0] < rank and not kwargs:
            d = args[0] % rank
            return (emit(x, d + 1), bdim) if d >= bdim else (emit(x, d), bdim - 1)
        if len(args) == 2 and keep_at == 2 and type(args[0]) is int and rank and -rank <= args[0] < rank and not kwargs:
            d = args[0] % rank
            d += d >= bdim
            return emit(x, d, args[1]), bdim if args[1] or d > bdim else bdim - 1
        given = [x, *args]
        given += [a.default_value for a in op._schema.arguments[len(given) : dim_at + 1]]
        dim = given[dim_at]
        if takes_list and isinstance(dim, list | tuple) and not len(dim):
            dim = None
        keepdim = given[keep_at] if keep_at is not None and len(given) > keep_at else kwargs.get("keepdim", False)
        if not rank:  # a sample's scalar: PyTorch lets it be reduced over dim 0 or -1
            if dim is not None:
                physical_dims(dim, 0, None)
            given[0], dims = x.unsqueeze(-1), [1]
            if keepdim and "keepdim" in kwargs:
                kwargs = {**kwargs, "keepdim": False}
            elif keepdim:
                given[keep_at] = False  # type: ignore[index]
        else:
            dims = physical_dims(dim, rank, bdim)
        given[dim_at] = dims if takes_list else dims[0]
        out = emit(*given, **kwargs)
        if not keepdim and rank:
            bdim -= sum(d < bdim for d in dims)
        return out, bdim

    return by_shape(reduction)


def along_dim(op: OpOverload) -> Rule:
    """Make the rule of an operator that works along one ``dim`` and keeps the rank (cumsum, sort, softmax)."""
    _refuse_special(op, "along_dim")
    arguments = op._schema.arguments
    dim_at = [a.name for a in arguments].index("dim")
    keyword = arguments[dim_at].kwarg_only
    emit = emitter(op)

    def along_dim(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        bdim = in_dims[0]
        rank = x.ndim - 1
        if len(args) == dim_at == 1 and type(args[0]) is int and rank and -rank <= args[0] < rank:
            d = args[0] % rank
            return emit(x, d + (d >= bdim), **kwargs), bdim
        if keyword:
            dim = kwargs.get("dim", arguments[dim_at].default_value)
            given = [x, *args]
        else:
            given = [x, *args]
            given += [a.default_value for a in arguments[len(given) : dim_at + 1]]
            dim = given[dim_at]
        if rank:
            (d,) = physical_dims(dim, rank, bdim)
        else:
            physical_dims(dim, 0, None)
            given[0], d = x.unsqueeze(-1), 1
        if keyword:
            kwargs = {**kwargs, "dim": d}
        else:
            given[dim_at] = d
        out = emit(*given, **kwargs)
        if rank:
            return out, bdim
        if isinstance(out, torch.Tensor):
            return out.squeeze(-1), 0
        return type(out)([o.squeeze(-1) for o in out]), 0

    return by_shape(along_dim)


@functools.cache
def default_rule(op: OpOverload) -> Rule | None:
    """Return the rule that an operator's tags and schema suggest, if they suggest one."""
    make = _default_family(op)
    return None if make is None else replace(make(op), pack="core (by tag)")


def _default_family(op: OpOverload) -> Callable[[OpOverload], Rule] | None:
    if torch.Tag.pointwise not in op.tags and op.name().removeprefix("aten::") not in _UNTAGGED:
        return None
    if torch.Tag.nondeterministic_seeded in op.tags or _has_list(op):
        return None
    if not op._schema.is_mutable:
        return pointwise
    return pointwise_inplace if op._schema.name.endswith("_") else None


def _is_special(op: OpOverload) -> bool:
    """Tell whether an operator takes, writes or draws more than the short makers here look at."""
    named = any(a.kwarg_only and "Tensor" in str(a.type) for a in op._schema.arguments)
    return named or _has_list(op) or op._schema.is_mutable or torch.Tag.nondeterministic_seeded in op.tags


def _refuse_special(op: OpOverload, maker: str) -> None:
    if _is_special(op):
        raise TypeError(
            f"{maker}() is for operators of positional tensors that neither write nor draw, which {op} is not; use "
            f"expand_dims, batch_dims or sequential, or write the rule"
        )


def _has_list(op: OpOverload) -> bool:
    return any("List[Tensor]" in str(a.type) for a in op._schema.arguments)


# Pointwise operators that some version (until 2.11) does not tag so.
_UNTAGGED = {"_conj_physical", "elu_", "leaky_relu", "leaky_relu_", "celu_", "hardsigmoid_", "hardtanh_"}
