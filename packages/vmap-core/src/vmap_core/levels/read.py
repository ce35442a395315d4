"""Reads of a batched value, all through one door, and how a BatchedTensor is shown.

A mapped function runs once for all samples, so a read goes on where all samples have one answer, as each of them would in
the loop; where they differ it is an error.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from ..errors import DataDependentError, EscapedTensorError, UnsupportedError, user_location
from .recording import unrecorded
from .stack import physically
from .tensor import BatchedTensor

_ADVICE = {
    "bool()": "use torch.where(condition, a, b) to choose per sample, or vmap(f, control_flow='split') (pip install vmap-control-flow)",
    "item()": "keep the value a tensor, or pass it to the mapped function with in_dims=None",
    "__index__()": "use torch.gather, torch.index_select or x[index_tensor] with the tensor itself",
}
_SHARING = {"numpy()"}  # an array that could be written to, and would be one sample's
# torch.func.vmap's texts, which its users match on.
_TEXTS = {
    "bool()": "vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow. "
    "We don't support that yet, please file an issue at https://github.com/pytorch/pytorch/issues .",
    "other": "vmap: It looks like you're calling .item() on a Tensor. We don't support vmap over calling .item() on "
    "a Tensor, please try to rewrite what you're doing with other operations. If error is occurring somewhere "
    "inside PyTorch internals, please file a bug report.",
}


def value(x: BatchedTensor, operation: str) -> Any:
    """Return the physical value of one sample, which is that of all samples.

    This is the only place where a mapped function can look at a batched value.

    Raises:
        DataDependentError: samples differ, or there is none.
        EscapedTensorError: the vmap has returned.
    """
    if x._bdim is None:
        return x._value
    if not x._level.active:
        raise escaped(x)
    if x._level.batch_size and operation not in _SHARING:
        rows = x._value.movedim(x._bdim, 0)
        if operation == "bool()" and x.numel() == 1:
            rows = rows != 0  # numbers that differ may have one answer
        if bool(every_sample(same(rows, rows[:1])).all()):
            return rows[0]
        why = f"; its value differs from sample to sample{_counted(rows)}"
        if x._level.part is not None:
            x._level.part(x, rows, operation, lambda: _error(x, operation, why))
    else:
        why = "" if x._level.batch_size else "; the batch is empty, so there is no value"
    raise _error(x, operation, why)


def _error(x: BatchedTensor, operation: str, why: str) -> DataDependentError:
    text = _TEXTS.get(operation, _TEXTS["other"])
    advice = _ADVICE.get(operation, _ADVICE["item()"])
    return DataDependentError(
        f"{text}\n  {operation} at {user_location()}, in vmap of {x._level.name!r}: logical shape "
        f"{tuple(x.shape)}, physical shape {physical_shape(x)}, batch dim {x._bdim}{why}. Instead: {advice}."
    )


def same(x: Any, y: Any) -> Any:
    """Tell where Python would see the same: NaN is NaN, and zero has a sign."""
    if x.is_complex():
        x, y = torch.view_as_real(x), torch.view_as_real(y)
    if not x.is_floating_point():
        return x == y
    return ((x == y) & (x.signbit() == y.signbit())) | ((x != x) & (y != y))


def _counted(rows: Any) -> str:
    """Return how many samples say True to a condition."""
    rows = every_sample(rows)
    return f" (True for {int(rows.sum())} of {rows.numel()} samples)" if rows.dtype == torch.bool else ""


def every_sample(x: Any) -> Any:
    """Return the plain tensor under all levels, for a check that concerns every sample at once."""
    while hasattr(x, "_bdim"):
        x = x._value
    return x


def item(x: BatchedTensor, operation: str) -> Any:
    """Return the Python number that all samples share."""
    return physically(lambda v: value(x, operation).item(), x._value)


def truth(x: Any) -> bool:
    """Return the answer of a condition that all samples share."""
    return physically(lambda v: bool(value(x, "bool()")), x._value)


def index(x: BatchedTensor) -> int:
    """Return the index that all samples share."""
    return physically(lambda v: operator.index(value(x, "__index__()")), x._value)


def tolist(x: BatchedTensor) -> Any:
    """Return the Python numbers that all samples share."""
    return physically(lambda v: value(x, "tolist()").tolist(), x._value)


def physical_shape(x: BatchedTensor) -> tuple[int, ...]:
    """Return the shape of the physical tensor, or of the outer BatchedTensor held as such."""
    return tuple(physically(lambda v: v.shape, x._value))


def unsupported(x: BatchedTensor, what: str, instead: str) -> UnsupportedError:
    """Make the error for something that cannot be done to a batched tensor."""
    return UnsupportedError(
        f"vmap: {what} of a batched tensor at {user_location()}, in vmap of {x._level.name!r}: logical shape "
        f"{tuple(x.shape)}, physical shape {physical_shape(x)}. Instead: {instead}."
    )


def describe(x: BatchedTensor) -> str:
    """Return the repr: level, batch dim, then the physical value, indented by level."""
    with unrecorded():
        body = physically(repr, x._value)
    body = "\n".join("    " + line for line in body.splitlines())
    dead = "" if x._level.active else " (dead: its vmap has returned)"
    return f"BatchedTensor(vmap of {x._level.name!r}{dead}, bdim={x._bdim}, value=\n{body}\n)"


def escaped(x: BatchedTensor) -> EscapedTensorError:
    """Make the error for a batched tensor whose level is not active here."""
    return EscapedTensorError(
        f"vmap: a tensor of the {x._level!r} was used at {user_location()}, where that level is not active: "
        f"Either your tensor may have escaped from inside a function being vmapped and this is a user error "
        f"(see https://pytorch.org/functorch/stable/ux_limitations.html). Instead: return it from the mapped function."
    )


def alive(x: Any) -> Any:
    """Return a value that may be used here: a dead unbatched tensor is worth its value.

    Raises:
        EscapedTensorError: it is a batched tensor of a vmap that has returned.
    """
    while type(x) is BatchedTensor and not x._level.active:
        if x._bdim is not None:
            raise escaped(x)
        x = x._value
    return x
