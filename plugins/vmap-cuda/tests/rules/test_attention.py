"""Fused attention: the kernels' table, seeds of dropout, what the engine saves, the layout of a bias."""

import pytest
import torch
from cuda_case import Case
from cuda_checks import Seen, checks_of, dropout_checks_of
from torch.utils._python_dispatch import TorchDispatchMode

from vmap_core import FallbackWarning, vmap

aten = torch.ops.aten
D, HALF = torch.double, torch.float16


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


CASES = {
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
}  # fmt: skip


@pytest.mark.parametrize(("check", "case"), checks_of(CASES))
def test_operators(check, case):
    check(case)


@pytest.mark.parametrize(("check", "case"), dropout_checks_of(DROPOUT))
def test_dropout(check, case):
    check(case)


@pytest.mark.parametrize(
    "attend", [FLASH, lambda *qkv: EFFICIENT(*qkv, None, True), lambda *qkv: CUDNN(*qkv, None, True)]
)
@pytest.mark.filterwarnings("ignore:.*_attention_backward.default has no batching rule")
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_rows_of_a_jacobian_through_the_engine(attend, p):
    """The forward call is one of one sample, its seed too: each row of the Jacobian has the numbers of that call."""
    q, k, v = (torch.randn(1, 2, 4, 8, dtype=D, requires_grad=True) for _ in range(3))
    out = attend(q, k, v, p)[0] if attend is FLASH else attend(q, k, v)[0]
    rows = torch.randn(3, *out.shape, dtype=D)
    got = vmap(lambda row: torch.autograd.grad(out, (q, k, v), row, retain_graph=True))(rows)
    loop = [torch.autograd.grad(out, (q, k, v), row, retain_graph=True) for row in rows]
    for g, *e in zip(got, *loop, strict=True):
        torch.testing.assert_close(g, torch.stack(e))


def test_seeds_from_outside_are_of_calls_on_one_sample():
    """Only the backward operator is mapped: each sample's numbers are those of a call on that sample."""
    q, grad = torch.randn(3, 2, 2, 4, 8, dtype=D), torch.randn(3, 2, 2, 4, 8, dtype=D)
    state = torch.tensor([5, 7], dtype=torch.uint64)
    outs = []
    for s in q:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cuda_standins.draw", lambda p: (torch.tensor(5), torch.tensor(7)))
            outs.append(FLASH(s, s, s, 0.5)[:2])
    out, lse = (torch.stack(c) for c in zip(*outs, strict=True))

    def back(grad, q, out, lse):
        return FLASH_BACK(grad, q, q, q, out, lse, None, None, 4, 4, 0.5, False, state, torch.tensor(0))[0]

    with pytest.warns(FallbackWarning, match="_scaled_dot_product_flash_attention_backward"):
        got = vmap(back, randomness="different")(grad, q, out, lse)
    torch.testing.assert_close(got, torch.stack([back(*row) for row in zip(grad, q, out, lse, strict=True)]))


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q):
        out, lse, *_, state, unused, _ = FLASH(q, q, q, 0.5)
        ctx.save_for_backward(q, out, lse, state, unused)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, out, lse, state, unused = ctx.saved_tensors
        return sum(FLASH_BACK(grad, q, q, q, out, lse, None, None, 4, 4, 0.5, False, state, unused))


def test_seeds_that_a_function_saves():
    """The stand-in checks that the backward call makes the numbers of the forward call."""
    q = torch.randn(3, 2, 2, 4, 8, dtype=D, requires_grad=True)

    def gradient(q):
        q = q.detach().requires_grad_()
        return torch.autograd.grad(Attend.apply(q).sum(), q)[0]

    with Seen() as seen:
        vmap(gradient, randomness="different")(q)
        vmap(Attend.apply, randomness="different")(q).sum().backward()
    assert seen.ops.count(FLASH) == seen.ops.count(FLASH_BACK) == 2
    with Seen() as seen:
        vmap(gradient, randomness="same")(q)
    assert seen.ops.count(FLASH) == seen.ops.count(FLASH_BACK) == 3


def test_rows_of_a_bias_stay_aligned():
    """The kernel wants rows that begin at multiples of 16 bytes: PyTorch's callers pad, and merging must not undo it."""
    q, k = torch.randn(3, 2, 2, 4, 8), torch.randn(3, 2, 2, 5, 8)
    padded = torch.randn(2, 3, 2, 4, 8)[..., :5]  # the batch dim is the second: merging copies
    out = vmap(lambda q, k, b: EFFICIENT(q, k, k, b, True)[0], in_dims=(0, 0, 1))(q, k, padded)
    for i in range(3):
        torch.testing.assert_close(out[i], EFFICIENT(q[i], k[i], k[i], padded[:, i], True)[0])


def test_a_bias_that_all_share_is_a_view():
    q, bias = torch.randn(3, 1, 2, 4, 8), torch.randn(1, 2, 4, 4)

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is EFFICIENT:
                strides.append(args[3].stride())
            return func(*args, **(kwargs or {}))

    strides = []
    with Look():
        vmap(lambda q: EFFICIENT(q, q, q, bias, True)[0])(q)
    assert strides == [(0, 16, 4, 1)]


def test_the_choice_of_a_kernel_is_one_number():
    q = torch.randn(3, 2, 2, 4, 8)
    chosen = []
    vmap(lambda q: chosen.append(torch._fused_sdp_choice(q, q, q)) or q)(q)
    vmap(lambda q: chosen.append(torch._fused_sdp_choice(q, q, q)) or q)(q[:0])
    assert chosen == [torch._fused_sdp_choice(q[0], q[0], q[0])] * 2
