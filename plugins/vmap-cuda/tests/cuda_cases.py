"""Calls of operators that exist only on CUDA, one sample each: for a CPU with stand-ins, fake tensors and a GPU."""

import torch
from cuda_attention import ATTENTION
from cuda_case import Case

aten = torch.ops.aten
CONVOLUTION_FLAGS = (False, True, False)
CONVOLUTION = {
    "cudnn_convolution": Case(
        lambda x, w: aten.cudnn_convolution.default(x, w, [1, 0], [2, 1], [1, 1], 1, *CONVOLUTION_FLAGS),
        lambda t: [t(2, 3, 5, 4), t(4, 3, 3, 2)], (aten.cudnn_convolution.default,), shapes=False,
    ),
    "cudnn_convolution, groups": Case(
        lambda x, w: aten.cudnn_convolution.default(x, w, [0], [1], [2], 2, *CONVOLUTION_FLAGS),
        lambda t: [t(2, 4, 6), t(4, 2, 3)], (aten.cudnn_convolution.default,), shapes=False, on_gpu=False,
    ),
    "cudnn_convolution_transpose": Case(
        lambda x, w: aten.cudnn_convolution_transpose.default(x, w, [1, 0], [1, 0], [2, 1], [1, 1], 2, *CONVOLUTION_FLAGS),
        lambda t: [t(2, 4, 3, 4), t(4, 3, 3, 2)], (aten.cudnn_convolution_transpose.default,), shapes=False,
    ),
    "cudnn_convolution_relu": Case(
        lambda x, w, b: aten.cudnn_convolution_relu.default(x, w, b, [1, 1], [1, 1], [1, 1], 1),
        lambda t: [t(2, 3, 4, 4), t(4, 3, 3, 3), t(4)], (aten.cudnn_convolution_relu.default,),
        gradients=False, shapes=False,
    ),
    "cudnn_convolution_add_relu": Case(
        lambda x, w, z, b: aten.cudnn_convolution_add_relu.default(x, w, z, 0.5, b, [1, 1], [1, 1], [1, 1], 1),
        lambda t: [t(2, 3, 4, 4), t(4, 3, 3, 3), t(2, 4, 4, 4), t(4)], (aten.cudnn_convolution_add_relu.default,),
        gradients=False, shapes=False,
    ),
}  # fmt: skip

BATCH_NORM, BATCH_NORM_BACK = aten.cudnn_batch_norm.default, aten.cudnn_batch_norm_backward.default


def batch_norm_back(grad, x, w, b):
    out, mean, rstd, reserve = BATCH_NORM(x, w, b, None, None, True, 0.1, 1e-5)
    return out, *BATCH_NORM_BACK(x, grad, w, None, None, mean, rstd, 1e-5, reserve)


def statistics(x, w, b, mean, var):
    mean, var = mean * 1, var.abs() + 1
    out, *saved, _ = BATCH_NORM(x, w, b, mean, var, True, 0.1, 1e-5)
    return out, *saved, mean, var


def evaluation(x, w, b, mean, var):
    return BATCH_NORM(x, w, b, mean, var.abs() + 1, False, 0.1, 1e-5)[0]


NORMALIZATION = {
    "cudnn_batch_norm": Case(
        lambda x, w, b: BATCH_NORM(x, w, b, None, None, True, 0.1, 1e-5)[:3],
        lambda t: [t(4, 3, 2, 2), t(3), t(3)], (BATCH_NORM,), shapes=False,
    ),
    "cudnn_batch_norm, statistics": Case(
        statistics, lambda t: [t(4, 3, 5), t(3), t(3), t(3), t(3)], (BATCH_NORM,), gradients=False, shapes=False,
        on_gpu=False,
    ),
    "cudnn_batch_norm, evaluation": Case(
        evaluation, lambda t: [t(4, 3, 2, 2), t(3), t(3), t(3), t(3)], (BATCH_NORM,), gradients=False, shapes=False,
    ),
    "cudnn_batch_norm_backward": Case(
        batch_norm_back, lambda t: [t(4, 3, 2, 2), t(4, 3, 2, 2), t(3), t(3)], (BATCH_NORM, BATCH_NORM_BACK),
        lambda dims: dims[1:] != (None,) * 3, gradients=False, shapes=False,
    ),
}  # fmt: skip

RNN, RNN_BACK = aten._cudnn_rnn.default, aten._cudnn_rnn_backward.default
RELU, TANH, LSTM, GRU = range(4)


def rnn(mode, x, hx, cx, *weights, sizes=(), batch_first=False, bidirectional=False):
    state = torch.empty(0, dtype=torch.uint8, device=x.device)
    options = (mode, 3, 0, 1, batch_first, 0.0, True, bidirectional, list(sizes), state)
    return RNN(x, list(weights), 4, None, hx, cx, *options)


def rnn_back(grad, x, hx, cx, *weights, mask=(True, True, True, False), **options):
    state = torch.empty(0, dtype=torch.uint8, device=x.device)
    out, hy, _, reserve, buffer = rnn(LSTM, x, hx, cx, *weights, **options)
    if buffer is None:  # PyTorch's shape function, which serves empty batches, forgets it
        buffer = torch.cat([w.flatten() for w in weights])
    given = (LSTM, 3, 0, 1, False, 0.0, True, False, list(options.get("sizes", ())), state, reserve, list(mask))
    dx, dhx, dcx, dw = RNN_BACK(x, list(weights), 4, buffer, hx, cx, out, grad, None, hy, *given)
    return dx, dhx, dcx, *(dw if mask[3] else ())


def weights(t, gates, directions=1):
    shapes = [(gates * 3, 4), (gates * 3, 3), (gates * 3,), (gates * 3,)]
    return [t(*shape) for _ in range(directions) for shape in shapes]


def shared_weights(first):
    return lambda dims: all(d is None for d in dims[first:])


RECURRENT = {
    "lstm": Case(
        lambda *a: rnn(LSTM, *a)[:3], lambda t: [t(5, 2, 4), t(1, 2, 3), t(1, 2, 3), *weights(t, 4)], (RNN,),
        shared_weights(3),
    ),
    "gru, both directions, batch first": Case(
        lambda x, hx, *w: rnn(GRU, x, hx, None, *w, batch_first=True, bidirectional=True)[:2],
        lambda t: [t(2, 5, 4), t(2, 2, 3), *weights(t, 3, directions=2)], (RNN,), shared_weights(2), gradients=False,
    ),
    "relu, packed": Case(
        lambda x, hx, *w: rnn(RELU, x, hx, None, *w, sizes=(2, 2, 1))[:2],
        lambda t: [t(5, 4), t(1, 2, 3), *weights(t, 1)], (RNN,), shared_weights(2),
    ),
    "lstm backward": Case(
        rnn_back, lambda t: [t(5, 2, 3), t(5, 2, 4), t(1, 2, 3), t(1, 2, 3), *weights(t, 4)], (RNN, RNN_BACK),
        lambda dims: shared_weights(4)(dims) and dims[1:4] != (None,) * 3, gradients=False, shapes=False,
    ),
    "lstm backward, packed": Case(
        lambda *a: rnn_back(*a, sizes=(2, 2, 1)),
        lambda t: [t(5, 3), t(5, 4), t(1, 2, 3), t(1, 2, 3), *weights(t, 4)], (RNN, RNN_BACK),
        lambda dims: shared_weights(4)(dims) and dims[1:4] != (None,) * 3, gradients=False, shapes=False,
    ),
    "lstm backward, weights": Case(
        lambda *a: rnn_back(*a, mask=(True,) * 4),
        lambda t: [t(5, 2, 3), t(5, 2, 4), t(1, 2, 3), t(1, 2, 3), *weights(t, 4)], (), lambda dims: False,
        gradients=False, shapes=False,
    ),
    "_thnn_fused_lstm_cell": Case(
        lambda *a: aten._thnn_fused_lstm_cell.default(*a)[:2], lambda t: [t(2, 12), t(2, 12), t(2, 3), t(12), t(12)],
        (aten._thnn_fused_lstm_cell.default,),
    ),
    "_thnn_fused_lstm_cell, no bias": Case(
        lambda *a: aten._thnn_fused_lstm_cell.default(*a)[:2], lambda t: [t(2, 12), t(2, 12), t(2, 3)],
        (aten._thnn_fused_lstm_cell.default,), shapes=False,
    ),
    "_thnn_fused_lstm_cell_backward": Case(
        lambda g, c, cx, cy, w: aten._thnn_fused_lstm_cell_backward_impl.default(g, c, cx, cy, w, True),
        lambda t: [t(2, 3), t(2, 3), t(2, 3), t(2, 3), t(2, 12)], (aten._thnn_fused_lstm_cell_backward_impl.default,),
        gradients=False,
    ),
    "_thnn_fused_gru_cell": Case(
        lambda *a: aten._thnn_fused_gru_cell.default(*a)[:1], lambda t: [t(2, 9), t(2, 9), t(2, 3), t(9), t(9)],
        (aten._thnn_fused_gru_cell.default,), shapes=False,
    ),
    "_thnn_fused_gru_cell_backward": Case(
        lambda g, w: aten._thnn_fused_gru_cell_backward.default(g, w, True), lambda t: [t(2, 3), t(2, 15)],
        (aten._thnn_fused_gru_cell_backward.default,), gradients=False, shapes=False,
    ),
}  # fmt: skip


def int8(t, *shape):
    return (t(*shape) * 30).to(torch.int8)


def fp8(t, *shape):
    return t(*shape).to(torch.float8_e4m3fn)


def columns(x):
    """Column after column in memory, as a sample made by rows is not."""
    return x.mT.clone(memory_format=torch.contiguous_format).mT


def scaled(x, y, a, b, *bias, out_dtype=torch.float32):
    return aten._scaled_mm.default(x, columns(y), a.abs(), b.abs(), *bias, out_dtype=out_dtype)


def scaled_rows(x, y, a, b):
    by_row = torch.nn.functional.ScalingType.RowWise
    return torch.nn.functional.scaled_mm(x, columns(y), a.abs(), by_row, b.abs(), by_row, output_dtype=torch.bfloat16)


def own_side(dims):
    x, y, a, b, *_ = dims
    return y is b is None if x is not None else x is a is None


def tensorwise(dims):
    x, y, a, b, *bias = dims
    return a is b is None and (x is None) != (y is None) and (x is None or bias in ([], [None]))


def grouped(*args, ends=None):
    offs = None if ends is None else torch.tensor(ends, dtype=torch.int32, device=args[0].device)
    return aten._grouped_mm.default(*args, offs)


INT_MM, SCALED_MM, GROUPED_MM = aten._int_mm.default, aten._scaled_mm.default, aten._grouped_mm.default
BF16 = torch.bfloat16
GEMM = {
    "_int_mm": Case(
        lambda x, y: INT_MM(x, y), lambda t: [int8(t, 32, 16), int8(t, 16, 8)], (INT_MM,), lambda dims: None in dims,
        gradients=False,
    ),
    "_scaled_mm": Case(
        scaled, lambda t: [fp8(t, 16, 32), fp8(t, 32, 48), t().float(), t().float()], (SCALED_MM,), tensorwise,
        gradients=False,
    ),
    "_scaled_mm, bias": Case(
        lambda *a: scaled(*a, out_dtype=BF16),
        lambda t: [fp8(t, 16, 32), fp8(t, 32, 48), t().float(), t().float(), t(48).to(BF16)], (SCALED_MM,), tensorwise,
        gradients=False,
    ),
    "_scaled_mm, rows": Case(
        lambda *a: scaled(*a, out_dtype=BF16),
        lambda t: [fp8(t, 16, 32), fp8(t, 32, 48), t(16, 1).float(), t(1, 48).float()], (SCALED_MM,),
        lambda dims: own_side(dims) and dims[:2] != (None, None), gradients=False,
    ),
    "F.scaled_mm, rows": Case(
        scaled_rows, lambda t: [fp8(t, 16, 32), fp8(t, 32, 48), t(16, 1).float(), t(1, 48).float()],
        (aten._scaled_mm_v2.default,), lambda dims: own_side(dims) and dims[:2] != (None, None), gradients=False,
    ),
    "_grouped_mm, 3d 3d": Case(
        lambda x, y: grouped(x, y), lambda t: [t(2, 8, 16), t(2, 16, 8)], (GROUPED_MM,), dtype=BF16, cpu_dtype=torch.float,
    ),
    "_grouped_mm, 2d 3d": Case(
        lambda x, y: grouped(x, y, ends=[16, 24]), lambda t: [t(24, 16), t(2, 16, 8)], (GROUPED_MM,), dtype=BF16, cpu_dtype=torch.float,
    ),
    "_grouped_mm, 3d 2d": Case(
        lambda x, y: grouped(x, y, ends=[16, 24]), lambda t: [t(2, 8, 16), t(16, 24)], (GROUPED_MM,), dtype=BF16, cpu_dtype=torch.float,
    ),
    "_grouped_mm, 2d 2d, the last part of no group": Case(
        lambda x, y: grouped(x, y, ends=[16, 24]), lambda t: [t(8, 32), t(32, 8)], (GROUPED_MM,), gradients=False,
        dtype=BF16, cpu_dtype=torch.float,
    ),
    "_grouped_mm, 2d 2d": Case(
        lambda x, y: grouped(x, y, ends=[16, 32]), lambda t: [t(8, 32), t(32, 8)], (GROUPED_MM,), dtype=BF16, cpu_dtype=torch.float,
    ),
}  # fmt: skip

GRID = {
    "cudnn_affine_grid_generator": Case(
        lambda x: aten.cudnn_affine_grid_generator.default(x, 2, 3, 4, 5), lambda t: [t(2, 2, 3)],
        (aten.cudnn_affine_grid_generator.default,), shapes=False,
    ),
    "cudnn_affine_grid_generator_backward": Case(
        lambda x: aten.cudnn_affine_grid_generator_backward.default(x, 2, 3, 4, 5), lambda t: [t(2, 4, 5, 2)],
        (aten.cudnn_affine_grid_generator_backward.default,), gradients=False, shapes=False,
    ),
    "cudnn_grid_sampler": Case(
        aten.cudnn_grid_sampler.default, lambda t: [t(2, 3, 4, 5), t(2, 3, 3, 2)], (aten.cudnn_grid_sampler.default,),
        shapes=False,
    ),
    "cudnn_grid_sampler_backward": Case(
        aten.cudnn_grid_sampler_backward.default, lambda t: [t(2, 3, 4, 5), t(2, 3, 3, 2), t(2, 3, 3, 3)],
        (aten.cudnn_grid_sampler_backward.default,), gradients=False, shapes=False,
    ),
}  # fmt: skip

OTHERS = {
    "_masked_scale": Case(
        lambda x, m: aten._masked_scale.default(x, m.to(torch.uint8), 2.0), lambda t: [t(3, 4), t(3, 4) > 0],
        (aten._masked_scale.default,), gradients=False,
    ),
    "native_dropout_backward": Case(
        lambda x, m: aten.native_dropout_backward.default(x, m, 2.0), lambda t: [t(3, 4), t(3, 4) > 0],
        (aten.native_dropout_backward.default,),
    ),
}  # fmt: skip

CASES = {**ATTENTION, **CONVOLUTION, **NORMALIZATION, **RECURRENT, **GEMM, **GRID, **OTHERS}
