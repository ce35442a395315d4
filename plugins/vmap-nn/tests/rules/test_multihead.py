"""Multi-head attention and Transformer layers against the loop: queries, masks or weights mapped, with and without N."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from tests.calls import check_call
from vmap_core import RandomnessError, vmap
from vmap_core.testing import check_rule


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


def attention(**options):
    return nn.MultiheadAttention(4, 2, **options).eval()


def r(*shape):
    return torch.linspace(-3, 3, torch.Size(shape).numel()).sin().reshape(shape)


Q, K = r(3, 2, 4), r(5, 2, 4)  # (L, N, E), (S, N, E)
PADDED = torch.tensor([[False, False, False, True, True], [False, True, False, False, False]])
CAUSAL = torch.ones(3, 5, dtype=torch.bool).triu(1)
CASES = {
    "queries and keys": (lambda m, q, k: m(q, k, k), Q, K),
    "to itself": (lambda m, q: m(q, q, q), Q),
    "no N": (lambda m, q, k: m(q, k, k), Q[:, 0], K[:, 0]),
    "one query": (lambda m, q, k: m(q, k, k), Q[:1, :1], K[:, :1]),
    "no weights": (lambda m, q, k: m(q, k, k, need_weights=False), Q, K),
    "weights of each head": (lambda m, q, k: m(q, k, k, average_attn_weights=False), Q, K),
    "padding": (lambda m, q, k, p: m(q, k, k, key_padding_mask=p), Q, K, PADDED),
    "padding, no N": (lambda m, q, k, p: m(q, k, k, key_padding_mask=p), Q[:, 0], K[:, 0], PADDED[0]),
    "mask": (lambda m, q, k, a: m(q, k, k, attn_mask=a), Q, K, CAUSAL),
    "mask of each head": (lambda m, q, k, a: m(q, k, k, attn_mask=a), Q, K, CAUSAL.expand(4, 3, 5)),
    "causal": (lambda m, q: m(q, q, q, attn_mask=CAUSAL[:, :3], is_causal=True), Q),
}


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name, options):
    function, *args = CASES[name]
    module = attention(**options)
    check_call(lambda *a: function(module, *a), *args, dtypes=())


def test_dtypes():
    for dtype in (torch.float64, torch.bfloat16):
        module = attention().to(dtype)
        check_rule(lambda q, k, m=module: m(q, k, k), Q.to(dtype), K.to(dtype), gradients=dtype == torch.float64)


def test_weights_of_every_sample():
    module = attention()
    names, values = zip(*((n, p.detach()) for n, p in module.named_parameters()), strict=True)

    def function(q, *weights):
        return functional_call(module, dict(zip(names, weights, strict=True)), (q, q, q))

    check_rule(function, Q, *values, nested=False)


def test_one_product_serves_all_samples():
    calls = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    module, counts = attention(), []
    for size in (2, 7):
        calls.clear()
        with Watch(), torch.no_grad():
            vmap(lambda q: module(q, q, q))(r(size, 3, 2, 4))
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_dropout():
    module = attention(dropout=0.5).train()
    with pytest.raises(RandomnessError):
        vmap(lambda q: module(q, q, q))(Q.expand(3, 3, 2, 4))
    for mode in ("same", "different"):
        out, _ = vmap(lambda q: module(q, q, q), randomness=mode)(Q.expand(3, 3, 2, 4))
        assert torch.equal(out[0], out[1]) == (mode == "same")


@pytest.mark.parametrize("training", [False, True])
def test_transformer_layers(training):
    encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0).train(training)
    decoder = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0).train(training)
    check_call(encoder, Q, dtypes=())
    check_call(lambda x, m: encoder(x, src_mask=m), Q, CAUSAL[:, :3], dtypes=())
    check_call(decoder, Q, K, dtypes=())


def test_an_encoder_in_inference_says_that_padded_positions_are_computed():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    x, padded = r(3, 2, 5, 4), PADDED.expand(3, 2, 5)
    with torch.no_grad(), pytest.warns(UserWarning, match="padded positions"):
        got = vmap(lambda x, p: encoder(x, src_key_padding_mask=p))(x, padded)
    with torch.no_grad():
        expected = torch.stack([encoder.train()(a, src_key_padding_mask=p) for a, p in zip(x, padded, strict=True)])
    torch.testing.assert_close(got, expected)
