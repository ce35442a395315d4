"""cuDNN's convolutions: a mapped input joins N; mapped filters make one grouped convolution."""

from __future__ import annotations

from typing import Any

from vmap_core.extend import Level, RulePack
from vmap_core.extend import named_aten as aten

from ._merge import Call, merge_dims, split_dims
from ._torch import OpOverload

pack = RulePack("cuda.convolution")


def convolution(op: OpOverload) -> Any:
    """Make the rule of a convolution, of what is added to it (``z``) and of what follows.

    A bias or ``z`` has the channels of the output. (The other way round, filters (C, O / groups, *) of a transposed
    convolution are one group a sample in the same way, since the groups lie along their first dim too.)
    """
    transposed = "transpose" in op._schema.name

    def convolution(info: Level, in_dims: Any, *args: Any) -> Any:
        """(N, C, *), (O, C / groups, *), (N, O, *), (O) -> (N, O, *)."""
        call = Call(op, in_dims, args, {})
        size, groups = info.batch_size, call.values["groups"]
        if not size:
            return call.looped(info, warn=False)
        if not call.batched("weight") and not call.batched("bias"):
            return split_dims(size, merge_dims(info, call, {"self": 0, "z": 0}), 0)
        filters = {"weight": 0, "bias": 0, "z": 1}
        if call.batched("self") or groups > 1 or transposed:
            out = merge_dims(info, call, {"self": 1, **filters}, groups=groups * size)
        else:  # one image, all samples' filters
            out = merge_dims(info, call, filters)
        return split_dims(size, out, 1)

    return convolution


pack.family(
    convolution,
    aten.cudnn_convolution.default,
    aten.cudnn_convolution_transpose.default,
    aten.cudnn_convolution_relu.default,
    aten.cudnn_convolution_add_relu.default,
)
