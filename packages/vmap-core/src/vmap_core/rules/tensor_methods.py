"""Functions and methods that concern the tensor object itself: metadata and requires_grad."""

import operator
from typing import Any

import torch
from torch import Tensor

from ..levels.args import unwrap, wrap
from ..levels.methods import METADATA_METHODS
from ..levels.numpy_operands import with_array
from ..levels.ownership import own_memory, own_memory_at, own_samples, own_samples_at, requires_grad_
from ..levels.tensor import BatchedTensor
from ..rulekit.dims import to_front
from ..rulekit.rule import RuleFunction, RulePack

pack = RulePack("core.tensor_methods")

pack.logical(Tensor.requires_grad_)(requires_grad_)
pack.logical(own_memory)(own_memory_at)
pack.logical(own_samples)(own_samples_at)


@pack.logical(Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
def set_requires_grad(info: Any, x: Any, value: bool) -> None:
    """``x.requires_grad = flag``."""
    requires_grad_(info, x, value)


def _method(name: str) -> RuleFunction:
    """Answer with the method of the tensor: BatchedTensor computes it for the logical tensor."""

    def metadata(info: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, name)(*args, **kwargs)

    return metadata


for _name in (
    "numel",
    "is_contiguous",
    "dim",
    "stride",
    "size",
    "ndimension",
    "nelement",
    "storage_offset",
    *METADATA_METHODS,
):
    pack.logical(getattr(Tensor, _name))(_method(_name))
    if type(getattr(torch, _name, None)) is type(torch.add):
        pack.logical(getattr(torch, _name))(_method(_name))


@pack.logical(Tensor.as_subclass)
def as_subclass(info: Any, x: Any, cls: type) -> Any:
    """The physical tensor as one of a subclass."""
    (value,), (bdim,), _ = unwrap(info, (x,))
    return wrap(info, value.as_subclass(cls), bdim)


@pack.logical(with_array)
def combine_with_array(info: Any, x: Any, array: Any, name: str) -> Any:
    """(*), an array that broadcasts with it -> (*)."""
    (value,), (bdim,), _ = unwrap(info, (x,))
    if bdim is not None:
        value = to_front(value, bdim)
        value = value.reshape(value.shape[0], *(1,) * (array.ndim + 1 - value.ndim), *value.shape[1:])
    return wrap(info, getattr(operator, name)(value, array), None if bdim is None else 0)


@pack.logical(Tensor.__deepcopy__)
def deepcopy(info: Any, x: Any, memo: Any) -> Any:
    """A copy, made inside: of a tensor from outside, that is; one of the level's own knows how."""
    return x.__deepcopy__(memo) if type(x) is BatchedTensor else wrap(info, x.__deepcopy__(memo), None)
