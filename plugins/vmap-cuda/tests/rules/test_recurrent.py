"""cuDNN's recurrent layers and fused cells, and their gradients."""

import pytest
import torch
from cuda_case import Case
from cuda_checks import checks_of

from vmap_core import UnsupportedError, vmap

aten = torch.ops.aten
D = torch.double


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


CASES = {
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


@pytest.mark.parametrize(("check", "case"), checks_of(CASES))
def test_operators(check, case):
    check(case)


def random_rnn(randomness):
    t = lambda *shape: torch.randn(shape)  # noqa: E731
    ws, state = [*weights(t, 4), t(12, 3), t(12, 3), t(12), t(12)], torch.arange(3, dtype=torch.uint8)
    options = (4, None, t(2, 2, 3), t(2, 2, 3), LSTM, 3, 0, 2, False, 0.5, True, False, [], state)
    run = lambda x: aten._cudnn_rnn.default(x, ws, *options)[0]  # noqa: E731
    return vmap(run, randomness=randomness)(t(1, 5, 2, 4).expand(3, 5, 2, 4))


def test_dropout_between_layers():
    out = random_rnn("different")
    assert not torch.equal(out[0], out[1])
    with pytest.raises(RuntimeError, match="randomness"):
        random_rnn("error")
    with pytest.raises(UnsupportedError, match="randomness='different'"):
        random_rnn("same")


def test_gradients_through_the_engine_per_sample():
    """Shared weights of a mapped LSTM: PyTorch's graph is physical, and adds over the samples as the loop's sum does."""
    t = lambda *shape: torch.randn(shape, dtype=D)  # noqa: E731
    ws = [w.requires_grad_() for w in weights(t, 4)]
    x, hx = t(3, 5, 2, 4), t(1, 2, 3)
    got = torch.autograd.grad(vmap(lambda x: rnn(LSTM, x, hx, hx, *ws)[0])(x).sum(), ws)
    expected = torch.autograd.grad(sum(rnn(LSTM, s, hx, hx, *ws)[0].sum() for s in x), ws)
    torch.testing.assert_close(got, expected)
