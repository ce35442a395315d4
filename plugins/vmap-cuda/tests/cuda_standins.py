"""CPU kernels of operators that exist only on CUDA: the formula, and what the kernel demands of its arguments.

With them registered, rules and PyTorch's own derivatives run on a CPU, and can be compared by value with the loop.
They are strict where the kernels are: rows in memory, alignment, sizes, which memory of a forward call they get back.
"""

import math
import warnings
import zlib

import torch

aten = torch.ops.aten
KERNELS = {}
KEYS = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
STREAMS = []


def kernel(*names):
    def enter(function):
        KERNELS.update(dict.fromkeys(names, function))
        return function

    return enter


def install():
    """Register all of them; the library that is returned takes them back with ``_destroy``."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")  # _scaled_mm has one
        for name, function in KERNELS.items():
            library.impl(name, function, "CPU")
    return library


def gradients(function, inputs, grads):
    """Gradients in a kernel, where autograd is switched off."""
    with torch._C._ForceDispatchKeyGuard(*KEYS), torch.enable_grad():
        inputs = [None if x is None else x.detach().requires_grad_() for x in inputs]
        outputs = function(*inputs)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
        wanted = [x for x in inputs if x is not None]
        found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
        return [None if x is None else next(found) for x in inputs]


# Attention.


def kept(shape, p, seed, offset):
    """One number an element of the whole call."""
    generator = torch.Generator().manual_seed(int(seed) * 1000 + int(offset))
    return (torch.rand(shape, generator=generator) >= p) / (1 - p)


def draw(p):
    return (torch.randint(1 << 20, ()), torch.tensor(7)) if p else (torch.zeros((), dtype=torch.long),) * 2


def attend(q, k, v, bias, p, causal, scale, seed, offset):
    heads = q.shape[1]
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    weights = scores.softmax(-1)
    if p:
        weights = weights * kept(weights.shape, p, seed, offset)
    return weights @ v, scores.logsumexp(-1).float()


def demand(q, k, v, bias=None, aligned=False):
    assert q.ndim == k.ndim == v.ndim == 4 and q.shape[0] == k.shape[0] == v.shape[0] > 0
    assert all(t.stride(-1) == 1 for t in (q, k, v))
    if bias is not None:
        assert bias.shape == (*q.shape[:3], k.shape[2])
        assert not aligned or all(s * bias.element_size() % 16 == 0 for s in bias.stride()[:-1])


@kernel("_scaled_dot_product_flash_attention")
def flash(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    demand(q, k, v)
    state = torch.stack(draw(dropout_p))
    out, lse = attend(q, k, v, None, dropout_p, is_causal, scale, *state)
    empty = torch.empty(0)
    return out, lse, None, None, q.shape[2], k.shape[2], state.to(torch.uint64), empty.sum().to(torch.uint64), empty


@kernel("_scaled_dot_product_flash_attention_backward")
def flash_backward(grad, q, k, v, out, lse, cq, ck, mq, mk, dropout_p, is_causal, seed, offset, *, scale=None):
    demand(q, k, v)
    assert grad.shape == out.shape and lse.shape == q.shape[:3] and seed.shape == (2,)
    state = seed.to(torch.long)
    expected = attend(q, k, v, None, dropout_p, is_causal, scale, *state)[0]
    torch.testing.assert_close(out, expected)  # the forward call's numbers
    run = lambda q, k, v: attend(q, k, v, None, dropout_p, is_causal, scale, *state)[:1]  # noqa: E731
    return tuple(gradients(run, (q, k, v), (grad,)))


def biased(sizes, aligned):
    """Make the kernels of forward and backward operators with a bias; ``sizes`` tells their outputs and order."""

    def forward(q, k, v, bias, dropout_p, is_causal, scale):
        demand(q, k, v, bias, aligned)
        seed, offset = draw(dropout_p)
        out, lse = attend(q, k, v, bias, dropout_p, is_causal, scale, seed, offset)
        return sizes(out, lse, q, k, seed, offset)

    def backward(grad, q, k, v, bias, out, seed, offset, dropout_p, is_causal, scale):
        demand(q, k, v, bias, aligned)
        assert seed.ndim == offset.ndim == 0 and grad.shape == out.shape
        torch.testing.assert_close(out, attend(q, k, v, bias, dropout_p, is_causal, scale, seed, offset)[0])
        run = lambda *given: attend(*given, dropout_p, is_causal, scale, seed, offset)[:1]  # noqa: E731
        return tuple(gradients(run, (q, k, v, bias), (grad,)))

    return forward, backward


efficient, efficient_back = biased(lambda out, lse, q, k, *state: (out, lse, *state), True)
sized, sized_back = biased(
    lambda out, lse, q, k, *state: (out, lse, None, None, q.shape[2], k.shape[2], *state, None), False
)


def in_blocks(lse):
    return torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=math.inf)


@kernel("_scaled_dot_product_efficient_attention")
def efficient_attention(q, k, v, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
    out, lse, *state = efficient(q, k, v, attn_bias, dropout_p, is_causal, scale)
    return out, in_blocks(lse) if compute_log_sumexp else lse[..., :0], *state


@kernel("_scaled_dot_product_efficient_attention_backward")
def efficient_backward(grad, q, k, v, bias, out, lse, seed, offset, dropout_p, mask, is_causal=False, *, scale=None):
    found = efficient_back(grad, q, k, v, bias, out, seed, offset, dropout_p, is_causal, scale)
    return tuple(g if m else None for g, m in zip(found, mask, strict=True))


@kernel("_scaled_dot_product_cudnn_attention")
def cudnn_attention(
    q, k, v, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None
):
    out, lse, *rest = sized(q, k, v, attn_bias, dropout_p, is_causal, scale)
    return out, lse.unsqueeze(-1), *rest


@kernel("_scaled_dot_product_cudnn_attention_backward", "_cudnn_attention_backward")
def cudnn_attention_backward(
    grad, q, k, v, out, lse, seed, offset, bias, cq, ck, mq, mk, dropout_p, is_causal, *, scale=None
):
    return sized_back(grad, q, k, v, bias, out, seed, offset, dropout_p, is_causal, scale)[:3]


@kernel("_cudnn_attention_forward")
def cudnn_forward(
    q,
    k,
    v,
    bias,
    cq,
    ck,
    mq,
    mk,
    compute_log_sumexp,
    dropout_p=0.0,
    is_causal=False,
    return_debug_mask=False,
    *,
    scale=None,
):
    return cudnn_attention(q, k, v, bias, compute_log_sumexp, dropout_p, is_causal, scale=scale)


@kernel("_scaled_dot_product_fused_attention_overrideable")
def overrideable(q, k, v, bias=None, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    return sized(q, k, v, bias, dropout_p, is_causal, scale)


@kernel("_scaled_dot_product_fused_attention_overrideable_backward")
def overrideable_backward(
    grad, q, k, v, bias, mask, out, lse, cq, ck, mq, mk, dropout_p, is_causal, seed, offset, *, scale=None
):
    return sized_back(grad, q, k, v, bias, out, seed, offset, dropout_p, is_causal, scale)


@kernel("_flash_attention_forward")
def flash_forward(q, k, v, cq, ck, mq, mk, dropout_p, is_causal, return_debug_mask, *, scale=None, **options):
    if cq is not None:  # rows of several sequences: (T, H, E)
        ends = cq[1:].tolist()
        parts = [t.tensor_split(ends[:-1]) for t in (q, k, v)]
        outs = [flash(*(t.transpose(0, 1)[None] for t in part), dropout_p, is_causal) for part in zip(*parts)]  # noqa: B905
        out, lse = (torch.cat([o[i].squeeze(0) for o in outs], 1) for i in (0, 1))
        return out.transpose(0, 1), lse, *outs[0][6:]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out, lse, *_, state, unused, debug = flash(q, k, v, dropout_p, is_causal, scale=scale)
    return out.transpose(1, 2), lse, state, unused, debug


@kernel("_flash_attention_backward")
def flash_forward_backward(
    grad, q, k, v, out, lse, cq, ck, mq, mk, dropout_p, is_causal, state, unused, *, scale=None, **options
):
    grad, q, k, v, out = (t.transpose(1, 2) for t in (grad, q, k, v, out))
    found = flash_backward(
        grad, q, k, v, out, lse, None, None, mq, mk, dropout_p, is_causal, state, unused, scale=scale
    )
    return tuple(g.transpose(1, 2) for g in found)


@kernel("_efficient_attention_forward")
def efficient_forward(
    q, k, v, bias, cq, ck, mq, mk, dropout_p, custom_mask_type, compute_log_sumexp=False, *, scale=None, **options
):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out, lse, *state = efficient(q, k, v, bias, dropout_p, custom_mask_type == 1, scale)
    return out.transpose(1, 2), in_blocks(lse) if compute_log_sumexp else lse[..., :0], *state, q.shape[2], k.shape[2]


@kernel("_efficient_attention_backward")
def efficient_forward_backward(
    grad, q, k, v, bias, out, cq, ck, mq, mk, lse, dropout_p, seed, offset, custom_mask_type, bias_requires_grad, *,
    scale=None, **options,
):  # fmt: skip
    grad, q, k, v, out = (t.transpose(1, 2) for t in (grad, q, k, v, out))
    dq, dk, dv, db = efficient_back(grad, q, k, v, bias, out, seed, offset, dropout_p, custom_mask_type == 1, scale)
    return *(g.transpose(1, 2) for g in (dq, dk, dv)), db if bias_requires_grad else None


# cuDNN.


@kernel("cudnn_convolution")
def convolution(x, weight, padding, stride, dilation, groups, benchmark, deterministic, allow_tf32):
    return aten.convolution(x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups)


@kernel("cudnn_convolution_transpose")
def transposed(x, weight, padding, output_padding, stride, dilation, groups, benchmark, deterministic, allow_tf32):
    return aten.convolution(x, weight, None, stride, padding, dilation, True, output_padding, groups)


@kernel("cudnn_convolution_relu")
def convolution_relu(x, weight, bias, stride, padding, dilation, groups):
    return aten.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups).relu()


@kernel("cudnn_convolution_add_relu")
def convolution_add_relu(x, weight, z, alpha, bias, stride, padding, dilation, groups):
    out = aten.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)
    assert z.shape == out.shape
    return (out + (1 if alpha is None else alpha) * z).relu()


def memory_of(*tensors):
    """What a forward call leaves for the backward call: here, something that tells which call it was."""
    return torch.tensor([zlib.crc32(t.contiguous().view(torch.uint8).numpy().tobytes()) for t in tensors]).view(
        torch.uint8
    )


@kernel("cudnn_batch_norm")
def batch_norm(x, weight, bias, running_mean, running_var, training, exponential_average_factor, epsilon):
    assert x.is_contiguous()
    outs = aten.native_batch_norm(
        x, weight, bias, running_mean, running_var, training, exponential_average_factor, epsilon
    )
    return *outs, memory_of(x) if training else torch.empty(0, dtype=torch.uint8)


@kernel("cudnn_batch_norm_backward")
def batch_norm_backward(x, grad, weight, running_mean, running_var, save_mean, save_var, epsilon, reserve):
    assert x.is_contiguous() and grad.is_contiguous() and torch.equal(reserve, memory_of(x))
    return aten.native_batch_norm_backward(
        grad, x, weight, running_mean, running_var, save_mean, save_var, True, epsilon, [True, True, True]
    )


def rnn(x, weight, stride0, hx, cx, mode, layers, batch_first, bidirectional, batch_sizes):
    assert hx.is_contiguous() and (cx is None or cx.is_contiguous())
    name = ("rnn_relu", "rnn_tanh", "lstm", "gru")[mode]
    hidden = (hx, cx) if mode == 2 else hx
    options = (weight, stride0 == 4, layers, 0.0, False, bidirectional)
    if batch_sizes:
        return getattr(torch._VF, name)(x, torch.tensor(batch_sizes), hidden, *options)
    return getattr(torch._VF, name)(x, hidden, *options, batch_first)


@kernel("_cudnn_rnn")
def cudnn_rnn(
    x, weight, weight_stride0, weight_buf, hx, cx, mode, hidden_size, proj_size, num_layers, batch_first, dropout, train,
    bidirectional, batch_sizes, dropout_state,
):  # fmt: skip
    out, hy, *cy = rnn(x, weight, weight_stride0, hx, cx, mode, num_layers, batch_first, bidirectional, batch_sizes)
    buffer = torch.cat([w.flatten() for w in weight]) if weight_buf is None else weight_buf
    if dropout and train:
        out = out * kept(out.shape, dropout, dropout_state.sum(), 0)
    return out, hy, cy[0] if cy else torch.empty(0, dtype=x.dtype), memory_of(x, hx), buffer


@kernel("_cudnn_rnn_backward")
def cudnn_rnn_backward(
    x, weight, weight_stride0, weight_buf, hx, cx, output, grad_output, grad_hy, grad_cy, mode, hidden_size, proj_size,
    num_layers, batch_first, dropout, train, bidirectional, batch_sizes, dropout_state, reserve, output_mask,
):  # fmt: skip
    assert torch.equal(reserve, memory_of(x, hx))
    reserve.zero_()  # used up, as cuDNN's is
    lstm = mode == 2

    def run(x, hx, cx, *weight):
        out = rnn(x, list(weight), weight_stride0, hx, cx, mode, num_layers, batch_first, bidirectional, batch_sizes)
        return out

    grads = (grad_output, grad_hy, *([grad_cy] if lstm else []))
    dx, dhx, dcx, *dweight = gradients(run, (x, hx, cx, *weight), grads)
    zeros = [torch.zeros_like(w) if g is None else g for w, g in zip(weight, dweight, strict=True)]
    return dx, dhx, dcx, zeros if output_mask[3] else []


@kernel("_thnn_fused_lstm_cell")
def lstm_cell(input_gates, hidden_gates, cx, input_bias=None, hidden_bias=None):
    gates = input_gates + hidden_gates
    if input_bias is not None:
        gates = gates + input_bias + hidden_bias
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat((i, f, g, o), 1)


@kernel("_thnn_fused_lstm_cell_backward_impl")
def lstm_cell_backward(grad_hy, grad_cy, cx, cy, workspace, has_bias):
    i, f, g, o = workspace.chunk(4, 1)
    hy, cell = (torch.zeros_like(cy) if t is None else t for t in (grad_hy, grad_cy))
    t = cy.tanh()
    c = cell + hy * o * (1 - t * t)
    gates = torch.cat((c * g * i * (1 - i), c * cx * f * (1 - f), c * i * (1 - g * g), hy * t * o * (1 - o)), 1)
    return gates, c * f, gates.sum(0) if has_bias else None


@kernel("_thnn_fused_gru_cell")
def gru_cell(input_gates, hidden_gates, hx, input_bias=None, hidden_bias=None):
    if input_bias is not None:
        input_gates, hidden_gates = input_gates + input_bias, hidden_gates + hidden_bias
    (ir, iz, i_n), (hr, hz, hn) = input_gates.chunk(3, 1), hidden_gates.chunk(3, 1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (i_n + r * hn).tanh()
    return n + z * (hx - n), torch.cat((r, z, n, hx, hn), 1)


@kernel("_thnn_fused_gru_cell_backward")
def gru_cell_backward(grad, workspace, has_bias):
    r, z, n, hx, hn = workspace.chunk(5, 1)
    dn = grad * (1 - z) * (1 - n * n)
    dr, dz = dn * hn * r * (1 - r), grad * (hx - n) * z * (1 - z)
    given, hidden = torch.cat((dr, dz, dn), 1), torch.cat((dr, dz, dn * r), 1)
    return given, hidden, grad * z, *((given.sum(0), hidden.sum(0)) if has_bias else (None, None))


@kernel("cudnn_affine_grid_generator")
def affine_grid(theta, N, C, H, W):
    return aten.affine_grid_generator(theta, [N, C, H, W], True)


@kernel("cudnn_affine_grid_generator_backward")
def affine_grid_backward(grad, N, C, H, W):
    return gradients(lambda theta: (affine_grid(theta, N, C, H, W),), (grad.new_zeros(N, 2, 3),), (grad,))[0]


@kernel("cudnn_grid_sampler")
def grid_sampler(x, grid):
    return aten.grid_sampler_2d(x, grid, 0, 0, True)


@kernel("cudnn_grid_sampler_backward")
def grid_sampler_backward(x, grid, grad):
    return aten.grid_sampler_2d_backward(grad, x, grid, 0, 0, True, [True, True])


# Products of 8-bit matrices, which PyTorch has on a CPU too, but in 2.11 not with scales of rows.


@kernel("_scaled_mm")
def scaled_mm(x, mat2, scale_a, scale_b, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False):
    assert x.is_contiguous() and mat2.mT.is_contiguous() and x.shape[1] % 16 == mat2.shape[1] % 16 == 0
    assert scale_a.is_contiguous() and scale_b.is_contiguous()
    assert (scale_a.numel(), scale_b.numel()) in ((1, 1), (x.shape[0], mat2.shape[1]))
    out = (x.float() * scale_a) @ (mat2.float() * scale_b)
    return (out if bias is None else out + bias).to(out_dtype or x.dtype)


@kernel("_scaled_mm_v2")
def scaled_mm_v2(
    x, mat2, scale_a, recipe_a, swizzle_a, scale_b, recipe_b, swizzle_b, bias, out_dtype, contraction_dim=(),
    use_fast_accum=False,
):  # fmt: skip
    assert list(recipe_a) == list(recipe_b) and len(scale_a) == len(scale_b) == 1
    return scaled_mm(x, mat2, scale_a[0], scale_b[0], bias, out_dtype=out_dtype)


# Others.


@kernel("_fused_dropout")
def fused_dropout(x, p, generator=None):
    mask = torch.rand(x.shape, generator=generator) < p
    return (x * mask / p).to(x.dtype), mask.to(torch.uint8)


@kernel("_masked_scale")
def masked_scale(x, mask, scale):
    assert x.shape == mask.shape
    return x * mask * scale


@kernel("record_stream")
def record_stream(x, s):
    STREAMS.append((tuple(x.shape), x.data_ptr()))
