"""flex_attention by its formula: eager and compiled, batched anywhere, at two levels, with what it captures mapped."""

import pytest
import torch

from tests.calls import check_call
from vmap_core import vmap


def scores(s, b, h, i, j):
    return s + (i - j) * 0.1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings(
    "ignore:torch.compile with fullgraph=True found no compiled frames"
)  # 2.12, of its own loop
@pytest.mark.parametrize("compiled", [False, True])
def test_flex_attention(compiled):
    """By its formula; score and mask functions may capture what is mapped."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attend = torch.compile(flex_attention) if compiled else flex_attention
    q, k, v = (torch.randn(3, 2, 2, 16, 8) for _ in range(3))  # PyTorch has no backward of it on a CPU
    bias = torch.randn(3, 16)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 16, 16, device="cpu")
    cases = [
        lambda q, k, v, bias: attend(q, k, v),
        lambda q, k, v, bias: attend(q, k, v, score_mod=scores, block_mask=mask),
        lambda q, k, v, bias: attend(q, k, v, score_mod=lambda s, b, h, i, j: s + bias[j], enable_gqa=True),
    ]
    for f in cases:
        got = vmap(f)(q, k, v, bias)
        with torch.compiler.set_stance("force_eager"):
            expected = torch.stack([f(*row) for row in zip(q, k, v, bias, strict=True)])
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_against_the_loop():
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (torch.linspace(-1, 2, 16).reshape(1, 2, 4, 2).sin() * s for s in (1, 2, 3))
    options = {"dtypes": (), "gradients": False, "nested": False}
    check_call(flex_attention, q, k, v, **{**options, "nested": True, "dtypes": (torch.bfloat16,)})
    check_call(lambda q, k, v: flex_attention(q, k, v, score_mod=scores), q[:, :, :1], k, v[..., :1], **options)
    check_call(
        lambda q, b: flex_attention(q, q, q, score_mod=lambda s, n, h, i, j: s * b[h]),
        q,
        torch.tensor([0.5, 2.0]),
        **options,
    )
