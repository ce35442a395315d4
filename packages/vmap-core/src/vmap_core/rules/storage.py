"""Memory, devices and the outside world: what reads or shares the storage of a tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..levels.args import unwrap
from ..levels.layout import same_storage
from ..levels.read import unsupported
from ..levels.tensor import EXACT, BatchedTensor, become
from ..rulekit.dims import ensure_bdim, to_front
from ..rulekit.rule import RuleFunction, RulePack
from ..torch_compat.tensors import is_alias_of

pack = RulePack("core.storage")


def _of_storage(name: str) -> RuleFunction:
    """Make the rule of a method that hands out memory: the samples of a batched tensor share one storage."""

    def storage(info: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if type(x) is not BatchedTensor or x._level is not info:
            return getattr(x, name)(*args, **kwargs)
        if x._bdim is not None:
            raise unsupported(x, f"{name}()", "return the tensor from the mapped function, and take its memory there")
        return getattr(x._value, name)(*args, **kwargs)

    return storage


for _name in ("data_ptr", "untyped_storage", "storage", "_typed_storage", "storage_type", "apply_", "map_", "map2_"):
    if hasattr(Tensor, _name):
        pack.logical(getattr(Tensor, _name))(_of_storage(_name))


@pack.logical(is_alias_of)
def _is_alias_of(info: Any, x: Any, y: Any) -> bool:
    """Tell whether two tensors share memory."""
    return same_storage(x, y)


@pack.logical(Tensor.share_memory_)
def share_memory_(info: Any, x: Any) -> Any:
    """Move the physical storage to shared memory."""
    x._value.share_memory_() if type(x) is BatchedTensor and x._level is info else x.share_memory_()
    return x


@pack.logical(Tensor.data.__set__)  # type: ignore[attr-defined]
def set_data(info: Any, x: Any, new: Any) -> None:
    """``x.data = new``: x shows the memory of another tensor from now on, and keeps its own history."""
    mine = type(x) is BatchedTensor and x._level is info
    if not mine:
        if type(new) is BatchedTensor and new._level is info:
            if new._bdim is not None:
                raise unsupported(
                    new, "assignment to .data of a tensor from outside", "assign outside the mapped function"
                )
            new = new._value
        x.data = new
        return
    with info.pushed():
        new = new.detach()
    if x.requires_grad:  # to autograd it stays the same tensor
        (value,), (bdim,), _ = unwrap(info, (new,))
        if x._bdim is not None:
            value = to_front(value, bdim) if bdim is not None else ensure_bdim(value, None, info.batch_size).clone()
            value = value.movedim(0, x._bdim)
        elif bdim is not None:
            raise unsupported(
                new, "assignment to .data of a leaf that all samples share", "assign to .data before requires_grad_()"
            )
        x._value.data, x._rank = value, 0
        x._origin = EXACT if x._bdim else x._origin
        return
    if type(new) is BatchedTensor and new._level is info:
        become(x, new._value, new._bdim, new._origin)
    else:
        become(x, new, None)
