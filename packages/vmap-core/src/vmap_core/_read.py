"""Reads of a batched value, all through one door, and how a BatchedTensor is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _dispatch
from ._errors import DataDependentError, UnsupportedError, user_location

if TYPE_CHECKING:
    from ._tensor import BatchedTensor

_ADVICE = {
    "bool()": "use torch.where(condition, a, b) to choose per sample, or torch.cond",
    "item()": "keep the value a tensor, or pass it to the mapped function with in_dims=None",
    "__index__()": "use torch.gather, torch.index_select or x[index_tensor] with the tensor itself",
}
# torch.func.vmap's texts, which its users match on.
_TEXTS = {
    "bool()": "vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow. "
    "We don't support that yet, please file an issue at https://github.com/pytorch/pytorch/issues .",
    "other": "vmap: It looks like you're calling .item() on a Tensor. We don't support vmap over calling .item() on "
    "a Tensor, please try to rewrite what you're doing with other operations. If error is occurring somewhere "
    "inside PyTorch internals, please file a bug report.",
}


def value(x: BatchedTensor, operation: str) -> Any:
    """Return the one physical value that all samples share.

    This is the only place where a mapped function can look at a batched value.

    Raises:
        DataDependentError: the value is batched.
    """
    if x._bdim is not None:
        text = _TEXTS.get(operation, _TEXTS["other"])
        advice = _ADVICE.get(operation, _ADVICE["item()"])
        raise DataDependentError(
            f"{text}\n  {operation} at {user_location()}, in vmap of {x._level.name!r}: logical shape "
            f"{tuple(x.shape)}, physical shape {physical_shape(x)}, batch dim {x._bdim}. Instead: {advice}."
        )
    return x._value


def every_sample(x: Any) -> Any:
    """Return the plain tensor under all levels, for a check that concerns every sample at once."""
    while hasattr(x, "_bdim"):
        x = x._value
    return x


def item(x: BatchedTensor, operation: str) -> Any:
    """Return the Python number that all samples share."""
    return _dispatch.physically(lambda v: v.item(), value(x, operation))


def tolist(x: BatchedTensor) -> Any:
    """Return the Python numbers that all samples share."""
    return _dispatch.physically(lambda v: v.tolist(), value(x, "tolist()"))


def physical_shape(x: BatchedTensor) -> tuple[int, ...]:
    """Return the shape of the physical tensor, or of the outer BatchedTensor held as such."""
    return tuple(_dispatch.physically(lambda v: v.shape, x._value))


def unsupported(x: BatchedTensor, what: str, instead: str) -> UnsupportedError:
    """Make the error for something that cannot be done to a batched tensor."""
    return UnsupportedError(
        f"vmap: {what} of a batched tensor at {user_location()}, in vmap of {x._level.name!r}: logical shape "
        f"{tuple(x.shape)}, physical shape {physical_shape(x)}. Instead: {instead}."
    )


def describe(x: BatchedTensor) -> str:
    """Return the repr: level, batch dim, then the physical value, indented by level."""
    from ._watch import unrecorded

    with unrecorded():
        body = _dispatch.physically(repr, x._value)
    body = "\n".join("    " + line for line in body.splitlines())
    dead = "" if x._level.active else " (dead: its vmap has returned)"
    return f"BatchedTensor(vmap of {x._level.name!r}{dead}, bdim={x._bdim}, value=\n{body}\n)"
