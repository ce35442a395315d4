"""The rule of an operator on matrices, made from the ranks of its tensors without leading dims.

Ranks are written like a signature, one figure a tensor: ``"2 1 -> 2"`` takes a matrix and a vector and gives a matrix,
each with any leading dims, of which the batch dim becomes one more. A star marks the right-hand side of a system, and
what is solved for it: ``"2 2* -> 2*"``. ``v*`` is a right-hand side that may be one vector.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import torch

from vmap_core.extend import emitter, ensure_bdim, logical_rank, pad_rank, settled, to_front

_ELEMENT = re.compile(r"\(Batch element (\d+)\): ")


def matrices(op: Any, signature: str) -> Any:
    """Make the rule of an operator from the ranks of its tensors."""
    left, _, right = signature.partition(" -> ")
    inputs, outputs = left.split(), right.split()
    if "*" in signature:
        return _system(op, inputs, outputs)
    ranks, out_ranks = [int(r) for r in inputs], [int(r) for r in outputs]
    return _one(op, ranks[0], out_ranks) if len(ranks) == 1 else _several(op, ranks, out_ranks)


def function(op: Any) -> Any:
    """Return the function that users call for an operator: it says more about wrong arguments, and costs less."""
    name = op._schema.name.removeprefix("aten::")
    if name == "linalg_ldl_solve":
        return _ldl_solve
    return getattr(torch.linalg, name.removeprefix("linalg_")) if name.startswith("linalg_") else emitter(op)


def _ldl_solve(ld: Any, pivots: Any, b: Any, *, hermitian: bool = False) -> Any:
    """Solve with leading dims that broadcast: PyTorch's own reads out of bounds there (in 2.15 and before)."""
    lead = torch.broadcast_shapes(ld.shape[:-2], pivots.shape[:-1], b.shape[:-2])
    ld, b = (x.expand(*lead, *x.shape[-2:]) for x in (ld, b))
    return torch.linalg.ldl_solve(ld, pivots.expand(*lead, pivots.shape[-1]), b, hermitian=hermitian)


def _one(op: Any, rank: int, outputs: list[int]) -> Any:
    emit = function(op)

    def one_matrix(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        bdim = in_dims[0]
        lead = x.ndim - 1 - rank
        if lead < 0:
            raise_for_sample(None, op, in_dims, (x, *args), kwargs)
        if bdim > lead:  # it lies within the matrix; among the leading dims it stays
            x, bdim = x.movedim(bdim, 0), 0
        try:
            out = emit(x, *args, **kwargs)
        except RuntimeError as error:
            if bdim:  # only with the batch dim in front is the first failure that of the first sample
                return one_matrix(info, (0,), x.movedim(bdim, 0), *args, **kwargs)
            raise_for_sample(error, op, (0,), (x, *args), kwargs, x.shape[1 : 1 + lead])
        return out, _out_dims(out, outputs, bdim)

    return one_matrix


def _several(op: Any, ranks: list[int], outputs: list[int]) -> Any:
    emit, count = function(op), len(ranks)

    def several_matrices(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [ensure_bdim(x, d, info.batch_size) for x, d in zip(args[:count], in_dims, strict=False)]
        if any(x.ndim - 1 < r for x, r in zip(tensors, ranks, strict=True)):
            raise_for_sample(None, op, in_dims, args, kwargs)
        try:
            out = emit(*tensors, *args[count:], **kwargs)
        except RuntimeError as error:
            raise_for_sample(error, op, in_dims, args, kwargs, tensors[0].shape[1 : -ranks[0]])
        return out, _out_dims(out, outputs, 0)

    return several_matrices


def _out_dims(out: Any, ranks: list[int], bdim: int) -> Any:
    """Return the batch dims of outputs. One that was not asked for is an empty vector, for all samples."""
    return bdim if len(ranks) == 1 else [bdim if o.ndim > r else None for o, r in zip(out, ranks, strict=True)]


def _system(op: Any, inputs: list[str], outputs: list[str]) -> Any:
    emit, count = function(op), len(inputs)
    rhs = next(i for i, r in enumerate(inputs) if r.endswith("*"))
    takes_vector = inputs[rhs] == "v*"
    ranks, out_ranks = ([2 if r == "v*" else int(r[0]) for r in rs] for rs in (inputs, outputs))
    solved = [r.endswith("*") for r in outputs]
    names = [a.name for a in op._schema.arguments]
    left_at = names.index("left") if "left" in names else len(names)
    vector_at = inputs.index("1") if "1" in inputs else None  # pivots, or factors of Householder's vectors
    nothing_broadcasts = op._schema.name == "aten::ormqr"

    def system(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        tensors, dims = list(args[:count]), list(in_dims[:count])
        left = kwargs.get("left", args[left_at] if left_at < len(args) else True)
        vector = takes_vector and is_vector(tensors[0], dims[0], tensors[1], dims[1])
        if vector:
            tensors[1], dims[1] = to_front(tensors[1], dims[1]).unsqueeze(-1), None if dims[1] is None else 0
        if (vector and not left) or any(logical_rank(x, d) < r for x, d, r in zip(tensors, dims, ranks, strict=True)):
            raise_for_sample(None, op, in_dims, args, kwargs)
        if vector_at is not None:
            leads = [
                logical_shape(x, d)[: logical_rank(x, d) - r] for x, d, r in zip(tensors, dims, ranks, strict=True)
            ]
            if len(set(leads if nothing_broadcasts else (leads[inputs.index("2")], leads[vector_at]))) > 1:
                raise_for_sample(None, op, in_dims, args, kwargs)
        shared = info.batch_size and tensors[rhs].ndim == 3 and all(
            i == rhs or (d is None and x.ndim == r)
            for i, (x, d, r) in enumerate(zip(tensors, dims, ranks, strict=True))
        )  # fmt: skip
        if shared:
            # Note [One factorisation for all samples]: their right-hand sides are columns of one system.
            b = to_front(tensors[rhs], dims[rhs])
            tensors[rhs], lead = _columns(b, left), ()
        else:
            most = max(logical_rank(x, d) - r for x, d, r in zip(tensors, dims, ranks, strict=True))
            for i, (x, d, r) in enumerate(zip(tensors, dims, ranks, strict=True)):
                tensors[i] = pad_rank(ensure_bdim(x, d, info.batch_size), 0, most + r)
            lead = tuple(map(max, *(x.shape[1 : 1 + most] for x in tensors)))
        try:
            out = emit(*tensors, *args[count:], **kwargs)
        except RuntimeError as error:
            raise_for_sample(error, op, in_dims, args, kwargs, lead)
        outs: list[Any] = [out] if len(outputs) == 1 else list(out)
        out_dims: list[int | None] = [0] * len(outputs)
        if shared:
            outs = [_samples(o, b.shape, left) if s else o for o, s in zip(outs, solved, strict=True)]
            out_dims = [0 if s else None for s in solved]
        out_dims = [d if o.ndim > r else None for o, d, r in zip(outs, out_dims, out_ranks, strict=True)]
        if vector:
            outs = [o.squeeze(-1) if r == "v*" else o for o, r in zip(outs, outputs, strict=True)]
        if shared:  # a sample's columns may lie between those of others
            outs, out_dims = map(list, zip(*map(settled, outs, out_dims), strict=True))
        return (outs[0], out_dims[0]) if len(outputs) == 1 else (type(out)(outs), out_dims)

    return system


def is_vector(a: Any, a_bdim: int | None, b: Any, b_bdim: int | None) -> bool:
    """Tell whether a right-hand side is one vector (for each of the leading dims), by the logical shapes."""
    return logical_rank(b, b_bdim) == 1 or logical_shape(a, a_bdim)[:-1] == logical_shape(b, b_bdim)


def logical_shape(x: Any, bdim: int | None) -> tuple[int, ...]:
    """Return the shape of one sample."""
    return tuple(x.shape) if bdim is None else (*x.shape[:bdim], *x.shape[bdim + 1 :])


def _columns(b: Any, left: bool) -> Any:
    """(B, n, k) -> (n, B * k), in the memory order that LAPACK takes; from the right (B, k, n) -> (B * k, n)."""
    return b.mT.flatten(0, 1).mT if left else b.flatten(0, 1)


def _samples(x: Any, shape: Any, left: bool) -> Any:
    """Undo `_columns`, for right-hand sides of a shape; a figure for each column is one for each sample and column."""
    if x.ndim == 1:  # empty if it was not computed
        return x.unflatten(0, (shape[0], -1)) if x.numel() else x
    return x.mT.unflatten(0, (shape[0], shape[2])).mT if left else x.unflatten(0, shape[:2])


def raise_for_sample(
    error: Exception | None, op: Any, in_dims: Any, args: Any, kwargs: Any, lead: Any = ()
) -> None:  # fmt: skip
    """Raise what the loop over the batch would have raised.

    Args:
        error: what the batched call raised: which element failed is counted within the sample. None if the sample's
            shape is known to be wrong.
        op: the operator.
        in_dims: the batch dims of its arguments.
        args: its arguments.
        kwargs: its keyword arguments.
        lead: the leading dims of one sample.
    """
    found = error and _ELEMENT.search(str(error))
    if not found:  # shapes or dtypes that it does not take: any sample says so
        blank = [
            a.new_zeros(logical_shape(a, d)) if isinstance(a, torch.Tensor) else a
            for a, d in itertools.zip_longest(args, in_dims[: len(args)])
        ]
        try:
            function(op)(*blank, **kwargs)
        except torch.linalg.LinAlgError:
            pass
        raise error or RuntimeError(f"{op} takes no tensors of these ranks")
    element = f"(Batch element {int(found[1]) % torch.Size(lead).numel()}): " if lead else ""
    raise type(error)(str(error).replace(found[0], element, 1)) from None  # type: ignore[misc]
