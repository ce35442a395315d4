"""Scaled dot product attention: the mapped dim is one more batch dim, so PyTorch's fused kernels still serve it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.attention import SDPBackend

from vmap_core.extend import Level, RulePack, ensure_bdim, logical_rank, pad_rank
from vmap_core.extend import named_aten as aten

from ._torch import attention_choice, dual_level

pack = RulePack("nn.attention")


@pack.rule(aten.scaled_dot_product_attention.default)
def scaled_dot_product_attention(
    info: Level, in_dims: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, int]:  # fmt: skip
    """(*, L, E), (*, S, E), (*, S, F), (*, L, S) -> (*, L, F)."""
    size = info.batch_size
    dims = (*in_dims[:4], None) if not isinstance(in_dims[-1], dict) else (*in_dims[:-1], None)
    rank = max(logical_rank(t, d) for t, d in zip((query, key, value), dims[:3], strict=True))
    tensors = [pad_rank(ensure_bdim(t, d, size), 0, rank) for t, d in zip((query, key, value), dims[:3], strict=True)]
    if attn_mask is not None:
        attn_mask = pad_rank(ensure_bdim(attn_mask, dims[3], size), 0, rank) if dims[3] is not None else attn_mask
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if dropout_p:
        info.require_randomness(aten.scaled_dot_product_attention.default)
        if info.randomness == "same":
            q, k, v = tensors
            return _with_one_mask(q, k, v, attn_mask, dropout_p, **options), 0
    lead = tensors[0].shape[1:-3] if rank > 3 else ()
    images = [_four_dims(t, rank, lead) for t in tensors]
    if attn_mask is not None and (dims[3] is not None or attn_mask.ndim > 3):
        attn_mask = attn_mask if dims[3] is not None else attn_mask.expand(size, *attn_mask.shape)
        attn_mask = _four_dims(pad_rank(attn_mask, 0, rank), rank, lead)
    op = aten.scaled_dot_product_attention.default
    if dual_level() >= 0:  # the fused kernels have no tangents
        op = _formula
    elif rank < 4 and torch.is_grad_enabled() and any(x.requires_grad for x in images):
        op = _twice_differentiable
    out = op(*images, attn_mask, dropout_p, **options)
    if rank > 3:
        return out.reshape(size, *lead, *out.shape[1:]), 0
    return out if rank == 3 else out.squeeze(1), 0


@pack.rule(aten._scaled_dot_product_flash_attention_for_cpu.default)
def flash_attention_for_cpu(
    info: Level, in_dims: Any, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0,
    is_causal: bool = False, *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """(N, H, L, E), (N, H, S, E), (N, H, S, F), (L, S) or (N, H, L, S) -> (N, H, L, F), logsumexp (N, H, L)."""
    op = aten._scaled_dot_product_flash_attention_for_cpu.default
    return _joined(info, in_dims, op, (query, key, value), dropout_p, is_causal, attn_mask, scale), 0


@pack.rule(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def flash_attention_for_cpu_backward(
    info: Level, in_dims: Any, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
    dropout_p: float, is_causal: bool, *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """As the forward: (N, H, L, F), ... -> (N, H, L, E), (N, H, S, E), (N, H, S, F)."""
    op = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    tensors = grad, query, key, value, out, logsumexp
    return _joined(info, in_dims, op, tensors, dropout_p, is_causal, attn_mask, scale), 0


def _joined(
    info: Level, in_dims: Any, op: Any, tensors: tuple[Tensor, ...], dropout_p: float, is_causal: bool,
    attn_mask: Tensor | None, scale: float | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Run a fused kernel with the mapped dim as a part of N; its results have it first."""
    size, named = info.batch_size, in_dims[-1] if isinstance(in_dims[-1], dict) else {}
    tensors = tuple(ensure_bdim(t, d, size) for t, d in zip(tensors, in_dims, strict=False))
    n = tensors[0].shape[1]
    images = [t.flatten(0, 1) for t in tensors]
    images = [t if t.stride(-1) == 1 else t.contiguous() for t in images]  # the kernel takes whole rows for granted
    if attn_mask is not None and (named.get("attn_mask") is not None or attn_mask.ndim == 4):
        mask = pad_rank(ensure_bdim(attn_mask, named.get("attn_mask"), size), 0, 4)
        attn_mask = mask.expand(size, n, *mask.shape[2:]).flatten(0, 1)
    results = op(*images, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return tuple(x.unflatten(0, (size, n)) for x in results)


def _twice_differentiable(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, **options: Any
) -> Tensor:
    """Attention of samples for which PyTorch takes no fused kernel in the loop, so that all derivatives exist.

    The CPU's kernel has one derivative: with it the second is that of the formula.
    """
    choice = attention_choice(query, key, value, attn_mask, dropout_p, **options)
    if query.device.type != "cpu" or choice != SDPBackend.FLASH_ATTENTION.value:
        out: Tensor = aten.scaled_dot_product_attention.default(query, key, value, attn_mask, dropout_p, **options)
        return out
    return _Flash.apply(query, key, value, _additive(attn_mask, query.dtype), options)[0]  # type: ignore[no-any-return]


class _Flash(Function):
    """The CPU's fused kernels; what is to be differentiated again goes through the formula."""

    generate_vmap_rule = True

    @staticmethod
    def forward(query: Any, key: Any, value: Any, mask: Any, options: Any) -> Any:
        causal, scale = options["is_causal"], options["scale"]
        op = aten._scaled_dot_product_flash_attention_for_cpu.default
        return op(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Any, _: Any) -> Any:
        query, key, value, mask, out, logsumexp = ctx.saved_tensors
        if grad is None:
            return None, None, None, None, None
        if (
            torch.is_grad_enabled()
        ):  # by views: one may have been computed from another, which is not to get its gradient too
            query, key, value = (t.view_as(t) for t in (query, key, value))
            at = [t for t, need in zip((query, key, value), ctx.needs_input_grad, strict=False) if need]
            again = _formula(query, key, value, mask, 0.0, **ctx.options)
            grads = iter(torch.autograd.grad(again, at, grad, create_graph=True))
            return *(next(grads) if need else None for need in ctx.needs_input_grad[:3]), None, None
        causal, scale = ctx.options["is_causal"], ctx.options["scale"]
        op = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        tensors = grad, query, key, value, out, logsumexp
        return *op(*tensors, 0.0, causal, attn_mask=mask, scale=scale), None, None


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a boolean mask as one that is added."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)


def _formula(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, **options: Any
) -> Tensor:
    """Attention by the operations that PyTorch takes where no fused kernel serves."""
    attn_mask = _additive(attn_mask, query.dtype)
    out: Tensor = aten._scaled_dot_product_attention_math.default(query, key, value, attn_mask, dropout_p, **options)[0]
    return out


def _four_dims(x: Tensor, rank: int, lead: tuple[int, ...]) -> Tensor:
    """(B, *lead, H, L, E) -> (B * lead, H, L, E), as the fused kernels want it; a missing H is one."""
    if rank < 4:
        return x.unsqueeze(1) if rank == 2 else x
    return x.expand(x.shape[0], *lead, *x.shape[-3:]).flatten(0, -4)


def _with_one_mask(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, *, is_causal: bool,
    scale: float | None, enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """The formula, with one dropout mask for all samples (randomness="same")."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    kept = torch.nn.functional.dropout(
        torch.ones(weights.shape[1:], dtype=weights.dtype, device=weights.device), dropout_p
    )
    return (weights * kept) @ value
