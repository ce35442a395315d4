"""The pack's patch is reached: an encoder inside a mapped function runs what it puts there."""

import torch

import vmap_core
from vmap_core import vmap
from vmap_nn import multihead


def test_reached(counted):
    patch = multihead.no_hint_for_mapped_masks
    assert patch in vmap_core.patches()
    encoder = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), 1, enable_nested_tensor=False
    )
    with counted(patch) as calls:
        vmap(lambda x, mask: encoder(x, mask=mask))(torch.randn(2, 3, 4), torch.zeros(2, 3, 3))
    assert calls
