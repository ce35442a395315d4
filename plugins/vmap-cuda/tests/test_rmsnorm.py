"""The example of docs/cuda.md: RMS normalisation by Triton kernels, forward and backward, written for one sample."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install vmap-cuda[triton]")
import triton.language as tl  # noqa: E402

import vmap_cuda  # noqa: E402
from vmap_core import vmap  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@vmap_cuda.triton_rule
@triton.jit
def forward_kernel(x, weight, out, scale, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + row * n + at, mask=inside, other=0.0)
    inverse = 1 / tl.sqrt(tl.sum(value * value, axis=0) / n + eps)
    tl.store(scale + row, inverse)
    tl.store(out + row * n + at, value * inverse * tl.load(weight + at, mask=inside), mask=inside)


@vmap_cuda.triton_rule
@triton.jit
def backward_kernel(grad, x, weight, scale, grad_x, grad_weight, n, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + row * n + at, mask=inside, other=0.0)
    dy = tl.load(grad + row * n + at, mask=inside, other=0.0)
    inverse = tl.load(scale + row)
    normal = value * inverse
    dn = dy * tl.load(weight + at, mask=inside, other=0.0)
    dx = inverse * (dn - normal * tl.sum(dn * normal, axis=0) / n)
    tl.store(grad_x + row * n + at, dx, mask=inside)
    tl.atomic_add(grad_weight + at, dy * normal, mask=inside)


class RMSNorm(torch.autograd.Function):
    """(rows, n), (n) -> (rows, n)."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        x, weight = x.contiguous(), weight.contiguous()
        out, scale = torch.empty_like(x), x.new_empty(len(x))
        block = triton.next_power_of_2(x.shape[1])
        forward_kernel[(len(x),)](x, weight, out, scale, x.shape[1], eps, BLOCK=block)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        block = triton.next_power_of_2(x.shape[1])
        grad = grad.contiguous()
        backward_kernel[(len(x),)](grad, x, weight, scale, grad_x, grad_weight, x.shape[1], BLOCK=block)
        return grad_x, grad_weight, None


def rms_norm(x, weight, eps=1e-6):
    """(rows, n), (n) -> (rows, n)."""
    return RMSNorm.apply(x, weight, eps)


def in_torch(x, weight, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def randn(*shape):
    return torch.randn(*shape, device=DEVICE, requires_grad=True)


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (1, 0), (2, 1)])
def test_values_and_gradients(size, in_dims):
    x = randn(2, 5) if in_dims[0] is None else randn(size, 2, 5).movedim(0, in_dims[0]).contiguous()
    w = randn(5) if in_dims[1] is None else randn(size, 5).movedim(0, in_dims[1]).contiguous()
    out, wanted = (vmap(f, in_dims=in_dims)(x, w) for f in (rms_norm, in_torch))
    torch.testing.assert_close(out, wanted)
    grad = torch.randn_like(out)
    for ours, theirs in zip(*(torch.autograd.grad(o, (x, w), grad) for o in (out, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_inside():
    x, w = randn(3, 2, 5), randn(5)

    def grads(f):
        def sample(x):
            weight = w.detach().requires_grad_()
            return torch.autograd.grad(f(x, weight).square().sum(), weight)[0]

        return vmap(sample)(x)

    torch.testing.assert_close(grads(rms_norm), grads(in_torch))


def test_nested():
    x, w = randn(2, 3, 4, 5), randn(3, 5)
    for dims in ((0, None), (0, 0)):
        f, g = (vmap(vmap(norm, in_dims=dims), in_dims=(0, None)) for norm in (rms_norm, in_torch))
        own = w if dims[1] == 0 else w[0]
        torch.testing.assert_close(f(x, own), g(x, own))
