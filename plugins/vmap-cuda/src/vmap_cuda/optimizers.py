"""Fused optimizers: kernels on lists of parameters, to which samples are so many more of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from vmap_core.extend import Level, RulePack, loop

aten = torch.ops.aten
pack = RulePack("cuda.optimizers")


def fused(op: OpOverload) -> Any:
    """Make the rule of an optimizer's step, which writes to lists of parameters and of their states."""
    steps_at = next((i for i, a in enumerate(op._schema.arguments) if a.name == "state_steps"), None)

    def fused(info: Level, in_dims: Any, *lists: Any, **kwargs: Any) -> tuple[None, None]:
        """[(*), ...], [(*), ...], ... written to."""
        kw_dims = in_dims[len(lists)] if len(in_dims) > len(lists) else {}
        if any(d is not None for d in kw_dims.values()):  # a learning rate or a scale of each sample: one a call
            loop(info, op, in_dims, *lists, **kwargs)
            return None, None
        entries: list[list[Tensor]] = [[] for _ in lists]
        for k in range(len(lists[0])):
            found = [
                (i, values[k], dims[k]) for i, (values, dims) in enumerate(zip(lists, in_dims, strict=False)) if values
            ]
            whole = _alike([(x, d) for i, x, d in found if i != steps_at])
            if whole and all(d is None for i, _, d in found if i == steps_at):
                for i, x, _ in found:
                    entries[i].append(x)
                continue
            for i, x, d in found:
                entries[i] += [x] * info.batch_size if d is None else [x.select(d, s) for s in range(info.batch_size)]
        if entries[0]:
            op(*entries, **kwargs)
        return None, None

    return fused


def _alike(tensors: list[tuple[Tensor, int | None]]) -> bool:
    """Tell whether tensors lie in memory alike, samples too: kernels go along them without asking for their dims."""
    first, bdim = tensors[0]
    return all(d == bdim is not None and x.stride() == first.stride() for x, d in tensors)


for _name in ("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"):
    pack.family(fused, getattr(aten, _name).default, getattr(aten, _name).tensor_lr)
