"""Backward hooks: they see the gradients of a sample, whenever the backward pass runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import UnsupportedError, user_location
from ..levels.args import unwrap
from ..levels.layout import mapped
from ..levels.level import Level
from ..levels.stack import resumed
from ..levels.tensor import BatchedTensor
from ..rulekit.dims import ensure_bdim
from ..rulekit.rule import RulePack

pack = RulePack("core.hooks")

_SHARED = (
    "{} on a tensor that does not depend on the sample, at {}: autograd keeps one gradient of it, summed over the "
    "samples. Instead: register it on a tensor that depends on a mapped input, or outside the mapped function"
)


@pack.logical(Tensor.register_hook)
def register_hook(info: Level, x: Any, hook: Callable[[Any], Any]) -> Any:
    """Call the hook on the gradients as the mapped function sees them; also after it has returned."""
    if type(x) is not BatchedTensor or x._level is not info:
        return x.register_hook(hook)
    bdim = x._bdim
    if bdim is None:
        raise UnsupportedError(f"vmap: {_SHARED.format('register_hook', user_location())}.")

    def physical(grad: Any) -> Any:
        with resumed((info,)):
            out = hook(mapped(grad, bdim, info))
        if out is None:
            return None
        (value,), (dim,), _ = unwrap(info, (out,))
        return ensure_bdim(value, dim, info.batch_size).movedim(0, bdim)

    return x._value.register_hook(physical)


@pack.logical(Tensor.register_post_accumulate_grad_hook)
def register_post_accumulate_grad_hook(info: Level, x: Any, hook: Callable[[Any], Any]) -> Any:
    """Refuse: the hook gets the leaf itself, which is dead once the mapped function has returned."""
    if type(x) is not BatchedTensor or x._level is not info:
        return x.register_post_accumulate_grad_hook(hook)
    raise UnsupportedError(
        f"vmap: register_post_accumulate_grad_hook on a batched tensor, at {user_location()}. Instead: use "
        f"register_hook, or register it on the tensor outside the mapped function."
    )
