"""Functions and methods that concern the tensor object itself: metadata and requires_grad."""

from typing import Any

import torch
from torch import Tensor

from ..levels.methods import METADATA_METHODS
from ..levels.ownership import own_samples, own_samples_at, requires_grad_
from ..rulekit.rule import RuleFunction, RulePack

pack = RulePack("core.tensor_methods")

pack.logical(Tensor.requires_grad_)(requires_grad_)
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


for _name in ("numel", "is_contiguous", "dim", "stride", "size", "ndimension", "nelement", *METADATA_METHODS):
    pack.logical(getattr(Tensor, _name))(_method(_name))
    if type(getattr(torch, _name, None)) is type(torch.add):
        pack.logical(getattr(torch, _name))(_method(_name))
