"""einops: its functions and layers, mapped."""

import pytest
import torch

from vmap_core.testing import check_rule

einops = pytest.importorskip("einops", reason="einops is not installed")

from einops import einsum, pack, rearrange, reduce, repeat, unpack  # noqa: E402
from einops.layers.torch import EinMix, Rearrange, Reduce  # noqa: E402

X = torch.randn(4, 6)


def packed(x, y):
    joined, shapes = pack([x, y], "i *")
    return unpack(joined * 2, shapes, "i *")


OPERATIONS = {
    "rearrange": (lambda x: rearrange(x, "(a b) c -> c a b", a=2), X),
    "rearrange a list": (lambda x, y: rearrange([x, y], "n a b -> b n a"), X, X + 1),
    "rearrange with an ellipsis": (lambda x: rearrange(x, "... c -> c ..."), X),
    "repeat": (lambda x: repeat(x, "a b -> a (b k)", k=3), X),
    "einsum": (lambda x, y: einsum(x, y, "a b, b c -> c a"), X, torch.randn(6, 2)),
    "pack": (packed, torch.randn(4, 2, 3), torch.randn(4)),
    "layers": (
        torch.nn.Sequential(Rearrange("(a b) c -> a (b c)", a=2), torch.nn.Linear(12, 3), Reduce("a c -> c", "max")),
        X,
    ),
    "EinMix": (EinMix("t c -> t o", weight_shape="c o", bias_shape="o", c=6, o=3), X),
    **{f"reduce by {how}": (lambda x, how=how: reduce(x, "(a b) c -> a c", how, b=2), X) for how in ("sum", "mean", "max", "min", "prod")},
    **{f"reduce by {how}": (lambda x, how=how: reduce(x, "(a b) c -> a c", how, b=2), X > 0) for how in ("any", "all")},
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    function, *sample = OPERATIONS[name]
    assert check_rule(function, *sample)
