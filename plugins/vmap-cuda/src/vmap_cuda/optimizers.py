"""Fused optimizers: kernels on lists of parameters, to which samples are so many more of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vmap_core.extend import Level, RulePack, loop, to_front
from vmap_core.extend import named_aten as aten

from ._merge import contiguous
from ._torch import OpOverload

pack = RulePack("cuda.optimizers")


def fused(op: OpOverload) -> Any:
    """Make the rule of an optimizer's step, which writes to lists of parameters and of their states."""
    written = {i for i, a in enumerate(op._schema.arguments) if a.alias_info is not None}
    steps_at = next((i for i, a in enumerate(op._schema.arguments) if a.name == "state_steps"), None)

    def fused(info: Level, in_dims: Any, *lists: Any, **kwargs: Any) -> tuple[None, None]:
        """[(*), ...], [(*), ...], ... written to."""
        kw_dims = in_dims[len(lists)] if len(in_dims) > len(lists) else {}
        if any(d is not None for d in kw_dims.values()):  # a learning rate or a scale of each sample: one a call
            loop(info, op, in_dims, *lists, **kwargs)
            return None, None
        entries: list[list[Tensor]] = [[] for _ in lists]
        copies: list[tuple[Tensor, Tensor]] = []
        for k in range(len(lists[0])):
            given = zip(lists, in_dims, strict=False)
            found = [(i, values[k], dims[k]) for i, (values, dims) in enumerate(given) if values]
            whole = _alike([(x, d) for i, x, d in found if i != steps_at])
            if whole and all(d is None for i, _, d in found if i == steps_at):
                for i, x, _ in found:
                    entries[i].append(x)
                continue
            for i, x, d in found:
                if d is None:
                    entries[i] += [x] * info.batch_size
                    continue
                samples = contiguous(front := to_front(x, d))
                entries[i] += [samples.select(0, s) for s in range(info.batch_size)]
                if samples is not front and i in written:
                    copies.append((front, samples))
        if entries[0]:
            op(*entries, **kwargs)
        for target, samples in copies:
            target.copy_(samples)
        return None, None

    return fused


def _alike(tensors: list[tuple[Tensor, int | None]]) -> bool:
    """Tell whether tensors lie in memory alike, samples too: kernels go along them without asking for their dims."""
    first, bdim = tensors[0]
    if any(d != bdim or d is None or x.stride() != first.stride() for x, d in tensors):
        return False
    return first.is_contiguous() or to_front(first, bdim).is_contiguous()


for _name in ("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"):
    pack.family(fused, getattr(aten, _name).default, getattr(aten, _name).tensor_lr)
