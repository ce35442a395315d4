"""Gradients of losses whose kernels take a whole batch: folded into N, the reduction taken out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vmap_core.extend import Level, RulePack, UnsupportedError, ensure_bdim, logical_rank, user_location
from vmap_core.extend import named_aten as aten

pack = RulePack("autograd.backward.loss")


def _folded(info: Level, in_dims: Any, grad: Any, x: Any, reduction: int) -> tuple[Any, Any, Any]:
    """Return the gradient of every row (B N), the rows (B N, C), and the shape to go back to."""
    size = info.batch_size
    rank = logical_rank(x, in_dims[1])
    grad, x = ensure_bdim(grad, in_dims[0], size), ensure_bdim(x, in_dims[1], size)
    n, classes = x.shape[1] if rank == 2 else 1, x.shape[-1] if rank else 1
    if reduction:
        grad = grad.reshape(size, 1).expand(size, n) / (n if reduction == 1 else 1)
    return grad.reshape(-1), x.reshape(size * n, classes), x.shape


@pack.rule(aten.multi_margin_loss_backward.default)
def multi_margin_loss_backward(
    info: Level,
    in_dims: Any,
    grad: Any,
    x: Any,
    target: Any,
    p: Any,
    margin: Any,
    weight: Any = None,
    reduction: int = 1,
) -> tuple[Tensor, int]:
    """() or (N), (N, C) or (C), (N) or (), (C) -> like x."""
    if len(in_dims) > 5 and in_dims[5] is not None:
        raise UnsupportedError(f"vmap: the gradient of multi_margin_loss with batched weights, at {user_location()}.")
    grad, rows, shape = _folded(info, in_dims, grad, x, reduction)
    target = ensure_bdim(target, in_dims[2], info.batch_size).reshape(-1)
    return aten.multi_margin_loss_backward.default(grad, rows, target, p, margin, weight, 0).reshape(shape), 0


@pack.rule(aten.multilabel_margin_loss_backward.default)
def multilabel_margin_loss_backward(
    info: Level, in_dims: Any, grad: Any, x: Any, target: Any, reduction: int, is_target: Any
) -> tuple[Tensor, int]:
    """() or (N), (N, C) or (C), like x, like x -> like x."""
    dims = (in_dims[2], in_dims[4] if len(in_dims) > 4 else None)
    grad, rows, shape = _folded(info, in_dims, grad, x, reduction)
    target, is_target = (
        ensure_bdim(t, d, info.batch_size).reshape(rows.shape) for t, d in zip((target, is_target), dims, strict=True)
    )
    return aten.multilabel_margin_loss_backward.default(grad, rows, target, 0, is_target).reshape(shape), 0


@pack.rule(aten._ctc_loss_backward.default)
def ctc_loss_backward(
    info: Level, in_dims: Any, grad: Any, log_probs: Any, targets: Any, input_lengths: Any, target_lengths: Any, loss: Any,
    log_alpha: Any, blank: int, zero_infinity: bool = False,
) -> tuple[Tensor, int]:  # fmt: skip
    """(N), (T, N, C), (N, S) or (sum of lengths), lengths, (N), (N, T, 2 S + 1) -> (T, N, C)."""
    size = info.batch_size
    dims = (*in_dims[:3], *in_dims[5:7])
    given = [ensure_bdim(t, d, size) for t, d in zip((grad, log_probs, targets, loss, log_alpha), dims, strict=True)]
    n = given[1].shape[2]
    grad, targets, loss, log_alpha = (t.flatten(0, 1) for t in (given[0], *given[2:]))
    probs = given[1].movedim(0, 1).flatten(1, 2)
    lengths = (list(input_lengths) * size, list(target_lengths) * size)
    out = aten._ctc_loss_backward.default(grad, probs, targets, *lengths, loss, log_alpha, blank, zero_infinity)
    return out.reshape(out.shape[0], size, n, out.shape[2]), 1
