"""What a mapped function must return: the Python loop over the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._samples import Levels

Function = Callable[..., list[Tensor]]


def loop(function: Function, tensors: list[Tensor], levels: Levels, *, apart: bool = True) -> list[Tensor]:
    """Return the outputs of one call a sample, stacked in front; an empty list for an empty batch.

    Args:
        function: takes the tensors of one sample.
        tensors: physical tensors.
        levels: for each level, outermost first, the batch dim of every tensor, or None.
        apart: whether samples are copies; else they lie as they do in the batch.
    """
    if not levels:
        return function(*tensors)
    dims, *inner = levels
    size = next(t.shape[d] for t, d in zip(tensors, dims, strict=True) if d is not None)
    samples = [
        loop(function, [_sample(t, d, i, apart) for t, d in zip(tensors, dims, strict=True)], inner, apart=apart)
        for i in range(size)
    ]
    return [torch.stack(column) for column in zip(*samples, strict=True)] if samples else []


def _sample(x: Tensor, dim: int | None, place: int, apart: bool) -> Tensor:
    if dim is None:
        return x
    return own(x.select(dim, place)) if apart else x.select(dim, place)


def own(sample: Tensor) -> Tensor:
    """Return a sample as a tensor of its own: some operators look at strides and storage offsets."""
    return sample.clone(memory_format=torch.contiguous_format) if sample.layout == torch.strided else sample


def mapped(vmap: Callable[..., Any], function: Function, tensors: list[Tensor], levels: Levels, **options: Any) -> Any:
    """Return the outputs under vmap, one vmap for each level.

    Args:
        vmap: the transform.
        function: takes the tensors of one sample.
        tensors: physical tensors.
        levels: as for `loop`.
        options: for the transform, for example ``randomness``.
    """
    run: Callable[..., Any] = function
    for dims in reversed(levels):
        run = vmap(run, in_dims=dims, **options)
    return run(*tensors)


def with_gradients(run: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    """Return the outputs of ``run`` and the gradients of a weighted sum of them for every floating tensor."""
    inputs = [
        t.detach().clone().requires_grad_(t.dtype.is_floating_point or t.dtype.is_complex) for t in tensors
    ]  # fmt: skip
    outputs = run(inputs)
    total = sum((_weighted(o) for o in outputs if o.requires_grad), torch.zeros(()))
    leaves = [t for t in inputs if t.requires_grad]
    if not total.requires_grad:
        return [*outputs, *(torch.zeros_like(t) for t in leaves)]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [*outputs, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True))]


def _weighted(o: Tensor) -> Tensor:
    weight = torch.linspace(0.5, 1.5, max(o.numel(), 1), device=o.device)[: o.numel()].reshape(o.shape)
    return (o * weight).sum().abs() if o.is_complex() else (o * weight).sum()
