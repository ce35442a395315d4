"""Calls of attention kernels and of operators with dropout, one sample each."""

import torch
from cuda_case import Case

aten = torch.ops.aten
HALF = torch.float16


def qkv(t):
    return [t(2, 3, 4, 8), t(2, 3, 8, 8), t(2, 3, 8, 8)]


def nlhe(t):
    return [t(2, 4, 3, 8), t(2, 8, 3, 8), t(2, 8, 3, 8)]


def with_bias(t):
    return [*qkv(t), t(2, 3, 4, 8)]


def and_grad(make):
    return lambda t: [t(*make(t)[0].shape), *make(t)]


FLASH = aten._scaled_dot_product_flash_attention.default
FLASH_BACK = aten._scaled_dot_product_flash_attention_backward.default
EFFICIENT = aten._scaled_dot_product_efficient_attention.default
EFFICIENT_BACK = aten._scaled_dot_product_efficient_attention_backward.default
CUDNN = aten._scaled_dot_product_cudnn_attention.default
CUDNN_BACK = aten._scaled_dot_product_cudnn_attention_backward.default
CUDNN_FORWARD, CUDNN_BACKWARD = aten._cudnn_attention_forward.default, aten._cudnn_attention_backward.default
OVERRIDEABLE = aten._scaled_dot_product_fused_attention_overrideable.default
OVERRIDEABLE_BACK = aten._scaled_dot_product_fused_attention_overrideable_backward.default
FLASH_FORWARD, FLASH_BACKWARD = aten._flash_attention_forward.default, aten._flash_attention_backward.default
EFFICIENT_FORWARD = aten._efficient_attention_forward.default
EFFICIENT_BACKWARD = aten._efficient_attention_backward.default


def efficient(q, *rest):
    out, lse, *_ = EFFICIENT(q, *rest)
    return out, lse.narrow(-1, 0, q.shape[2])


def flash_back(grad, q, k, v, p=0.0):
    out, lse, cq, ck, mq, mk, state, unused, _ = FLASH(q, k, v, p, False)
    return FLASH_BACK(grad, q, k, v, out, lse, cq, ck, mq, mk, p, False, state, unused)


def efficient_back(grad, q, k, v, bias, p=0.0):
    out, lse, seed, offset = EFFICIENT(q, k, v, bias, True, p)
    return EFFICIENT_BACK(grad, q, k, v, bias, out, lse, seed, offset, p, [True] * 4)


def cudnn_back(grad, q, k, v, bias, p=0.0):
    out, lse, cq, ck, mq, mk, seed, offset, _ = CUDNN(q, k, v, bias, True, p)
    return CUDNN_BACK(grad, q, k, v, out, lse, seed, offset, bias, cq, ck, mq, mk, p, False)


def flash_forward_back(grad, q, k, v, p=0.0):
    out, lse, state, unused, _ = FLASH_FORWARD(q, k, v, None, None, 4, 8, p, False, False)
    return FLASH_BACKWARD(grad, q, k, v, out, lse, None, None, 4, 8, p, False, state, unused)


def efficient_forward_back(grad, q, k, v, bias, p=0.0):
    out, lse, seed, offset, mq, mk = EFFICIENT_FORWARD(q, k, v, bias, None, None, None, None, p, 0, True)
    return EFFICIENT_BACKWARD(grad, q, k, v, bias, out, None, None, mq, mk, lse, p, seed, offset, 0, True)


def cudnn_forward_back(grad, q, k, v, bias, p=0.0):
    out, lse, cq, ck, mq, mk, seed, offset, _ = CUDNN_FORWARD(q, k, v, bias, None, None, 4, 8, True, p)
    return CUDNN_BACKWARD(grad, q, k, v, out, lse, seed, offset, bias, cq, ck, mq, mk, p, False)


def overrideable_back(grad, q, k, v, bias, p=0.0):
    out, lse, cq, ck, mq, mk, seed, offset, _ = OVERRIDEABLE(q, k, v, bias, p)
    return OVERRIDEABLE_BACK(grad, q, k, v, bias, [True] * 4, out, lse, cq, ck, mq, mk, p, False, seed, offset)


OFFSETS = [0, 3, 6]


def in_one_row(q, k, v):
    ends = torch.tensor(OFFSETS, dtype=torch.int32, device=q.device)
    return FLASH_FORWARD(q, k, v, ends, ends, 3, 3, 0.0, False, False)[:2]


ATTENTION = {
    "flash": Case(lambda *a: FLASH(*a)[:2], qkv, (FLASH,), dtype=HALF),
    "flash, causal and scaled": Case(lambda *a: FLASH(*a, 0.0, True, scale=0.3)[:2], qkv, (FLASH,), dtype=HALF),
    "flash, one image": Case(
        lambda *a: FLASH(*a)[:2], lambda t: [t(1, 2, 4, 8), t(1, 1, 8, 8), t(1, 1, 8, 8)], (FLASH,), dtype=HALF
    ),
    "flash backward": Case(flash_back, and_grad(qkv), (FLASH, FLASH_BACK), gradients=False, dtype=HALF),
    "efficient": Case(lambda *a: efficient(*a, None, True), qkv, (EFFICIENT,)),
    "efficient, bias": Case(lambda *a: efficient(*a, True, 0.0, True), with_bias, (EFFICIENT,)),
    "efficient backward": Case(
        efficient_back, and_grad(with_bias), (EFFICIENT, EFFICIENT_BACK), gradients=False
    ),
    "cudnn": Case(lambda *a: CUDNN(*a, None, True)[:2], qkv, (CUDNN,), dtype=HALF),
    "cudnn, bias": Case(lambda *a: CUDNN(*a, True)[:2], with_bias, (CUDNN,), gradients=False, dtype=HALF),
    "cudnn backward": Case(cudnn_back, and_grad(with_bias), (CUDNN, CUDNN_BACK), gradients=False, dtype=HALF),
    "_cudnn_attention": Case(
        cudnn_forward_back, and_grad(with_bias), (CUDNN_FORWARD, CUDNN_BACKWARD), gradients=False, shapes=False,
        dtype=HALF,
    ),
    "overrideable": Case(
        overrideable_back, and_grad(with_bias), (OVERRIDEABLE, OVERRIDEABLE_BACK), gradients=False, on_gpu=False,
        shapes=torch._C._dispatch_has_kernel_for_dispatch_key(OVERRIDEABLE_BACK.name(), "Meta"),  # torch 2.11 has no shape function
    ),
    "_flash_attention": Case(
        flash_forward_back, and_grad(nlhe), (FLASH_FORWARD, FLASH_BACKWARD), gradients=False, dtype=HALF
    ),
    "_flash_attention, several lengths": Case(
        in_one_row, lambda t: [t(6, 2, 8) for _ in range(3)], (FLASH_FORWARD,), lambda dims: False, gradients=False,
        shapes=False, dtype=HALF,
    ),
    "_efficient_attention": Case(
        efficient_forward_back,
        and_grad(lambda t: [*nlhe(t), t(2, 3, 4, 8)]),
        (EFFICIENT_FORWARD, EFFICIENT_BACKWARD),
        gradients=False,
    ),
}  # fmt: skip

DROPOUT = {
    "flash": Case(lambda *a: flash_back(*a, 0.5), and_grad(qkv), (FLASH, FLASH_BACK), dtype=HALF),
    "efficient": Case(lambda *a: efficient_back(*a, 0.5), and_grad(with_bias), (EFFICIENT, EFFICIENT_BACK)),
    "cudnn": Case(lambda *a: cudnn_back(*a, 0.5), and_grad(with_bias), (CUDNN, CUDNN_BACK), dtype=HALF),
    "_cudnn_attention": Case(
        lambda *a: cudnn_forward_back(*a, 0.5), and_grad(with_bias), (CUDNN_FORWARD, CUDNN_BACKWARD), dtype=HALF
    ),
    "_flash_attention": Case(
        lambda *a: flash_forward_back(*a, 0.5), and_grad(nlhe), (FLASH_FORWARD, FLASH_BACKWARD), dtype=HALF
    ),
    "_efficient_attention": Case(
        lambda *a: efficient_forward_back(*a, 0.5),
        and_grad(lambda t: [*nlhe(t), t(2, 3, 4, 8)]),
        (EFFICIENT_FORWARD, EFFICIENT_BACKWARD),
    ),
    "fused": Case(lambda x: aten._fused_dropout.default(x, 0.5), lambda t: [t(3, 4)], (aten._fused_dropout.default,)),
    "native": Case(lambda x: aten.native_dropout.default(x, 0.5, True), lambda t: [t(3, 4)], (aten.native_dropout.default,)),
}  # fmt: skip
