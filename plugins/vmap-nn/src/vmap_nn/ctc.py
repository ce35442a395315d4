"""Connectionist temporal classification: the mapped dim is folded into N, and only the reduction is per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Level, RulePack, ensure_bdim, every_sample, logical_rank
from vmap_core.extend import named_aten as aten

pack = RulePack("nn.ctc")


@pack.rule(aten.ctc_loss.IntList, aten.ctc_loss.Tensor)
def ctc_loss(
    info: Level, in_dims: Any, log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any,
    blank: int = 0, reduction: int = 1, zero_infinity: bool = False,
) -> tuple[Tensor, int]:  # fmt: skip
    """(T, N, C) or (T, C), padded (N, S) or one after the other (sum), (N), (N) -> () or (N).

    https://pytorch.org/docs/stable/generated/torch.nn.functional.ctc_loss.html
    """
    size = info.batch_size
    single = logical_rank(log_probs, in_dims[0]) == 2
    log_probs = ensure_bdim(log_probs, in_dims[0], size).movedim(0, 1)  # (T, B, N, C)
    log_probs = log_probs.unsqueeze(2) if single else log_probs
    n = log_probs.shape[2]
    inputs, lengths = (_lengths(t, d, size) for t, d in zip((input_lengths, target_lengths), in_dims[2:4], strict=True))
    targets = _padded(ensure_bdim(targets, in_dims[1], size), lengths)
    if not size:
        return log_probs.sum((0, 3))[:, 0] if single or reduction else log_probs.sum((0, 3)), 0
    folded = (log_probs.flatten(1, 2), targets.flatten(0, 1), inputs.flatten(), lengths.flatten())
    loss = torch.ctc_loss(*folded, blank, 0, zero_infinity).unflatten(0, (size, n))
    if reduction == 1:
        return (loss / lengths.clamp(min=1).to(loss)).mean(1), 0
    if reduction == 2:
        return loss.sum(1), 0
    return loss.squeeze(1) if single else loss, 0


def _lengths(lengths: Any, bdim: Any, size: int) -> Tensor:
    """Numbers, or (N) or () -> (B, N)."""
    if not isinstance(lengths, Tensor):
        return torch.tensor(lengths, dtype=torch.long).reshape(-1).expand(size, -1)
    lengths = ensure_bdim(lengths, bdim, size)
    return lengths.reshape(size, lengths.shape[1:].numel())


def _padded(targets: Tensor, lengths: Tensor) -> Tensor:
    """(B, N, S), or (B, sum) one after the other, with lengths (B, N) -> (B, N, S)."""
    if targets.ndim == 3:
        return targets
    total = targets.shape[1]
    known = every_sample(lengths)
    if known.numel() and bool((known.sum(-1) != total).any()):
        raise RuntimeError(
            f"ctc_loss: there are {total} targets one after the other, target_lengths sum up to others: {known}"
        )
    if lengths.shape[1] == 1:  # one sequence
        return targets.unsqueeze(1)
    longest = int(known.max()) if known.numel() else 0
    lengths = lengths.to(targets.device)
    places = (lengths.cumsum(1) - lengths).unsqueeze(2) + torch.arange(longest, device=targets.device)
    places = places.clamp(max=max(total - 1, 0))  # padding: never looked at
    return targets.gather(1, places.flatten(1)).unflatten(1, places.shape[1:])
