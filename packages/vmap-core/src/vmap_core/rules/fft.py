"""Fourier transforms: the kernels take a list of dims, which are counted around the batch dim."""

from __future__ import annotations

from typing import Any

from ..rulekit.dims import physical_dims
from ..rulekit.rule import RuleFunction, RulePack
from ..torch_compat.operators import named_aten as aten

pack = RulePack("core.fft")


def _over_dims(op: Any) -> RuleFunction:
    def transform(info: Any, in_dims: Any, x: Any, dim: Any, *args: Any) -> Any:
        bdim = in_dims[0]
        if not x.shape[bdim]:  # MKL refuses an empty batch
            shape = list(x.shape)
            shape[bdim] = 1
            out, _ = transform(info, in_dims, x.new_zeros(shape), dim, *args)
            return out.narrow(bdim, 0, 0), bdim
        return op(x, physical_dims(list(dim), x.ndim - 1, bdim), *args), bdim

    return transform


pack.family(_over_dims, aten._fft_c2c.default, aten._fft_c2r.default, aten._fft_r2c.default)
