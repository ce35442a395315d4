"""Layers against the loop: input mapped, parameters mapped (an ensemble), both; without the slow loop."""

import warnings

import pytest
import torch
from torch.func import functional_call, stack_module_state

import vmap_core
from vmap_core import vmap

LAYERS = {
    "linear": (lambda: torch.nn.Linear(6, 3), (2, 6)),
    "conv1d": (lambda: torch.nn.Conv1d(4, 6, 3, groups=2), (2, 4, 7)),
    "conv2d": (lambda: torch.nn.Conv2d(4, 6, 3, padding=1, stride=2), (2, 4, 7, 7)),
    "conv2d unbatched": (lambda: torch.nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "conv3d": (lambda: torch.nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "transposed": (lambda: torch.nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)),
    "layer norm": (lambda: torch.nn.LayerNorm((4, 5)), (3, 4, 5)),
    "group norm": (lambda: torch.nn.GroupNorm(2, 4), (2, 4, 5)),
    "batch norm, eval": (lambda: torch.nn.BatchNorm2d(4).eval(), (2, 4, 5, 5)),
    "batch norm, no statistics": (lambda: torch.nn.BatchNorm1d(4, track_running_stats=False), (5, 4)),
    "max pool": (lambda: torch.nn.MaxPool2d(2, return_indices=False), (2, 3, 6, 6)),
    "avg pool": (lambda: torch.nn.AvgPool1d(2), (2, 3, 6)),
    "adaptive": (lambda: torch.nn.AdaptiveMaxPool2d(2), (3, 6, 6)),
    "embedding": (lambda: torch.nn.Embedding(5, 3, padding_idx=1), None),
    "bilinear upsample": (lambda: torch.nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4, 4)),
    "prelu": (lambda: torch.nn.PReLU(), (3, 4)),
}


@pytest.fixture(autouse=True)
def no_loop():
    with warnings.catch_warnings():
        warnings.simplefilter("error", vmap_core.FallbackWarning)
        yield


WITHOUT_PARAMETERS = {"max pool", "avg pool", "adaptive", "bilinear upsample"}


@pytest.mark.parametrize(
    ("name", "mapped"),
    [(n, m) for n in LAYERS for m in ("input", "parameters", "both") if m == "input" or n not in WITHOUT_PARAMETERS],
)
def test_layer(name, mapped):
    make, shape = LAYERS[name]
    members = [make() for _ in range(3)]
    for member in members:
        for p in member.parameters():
            torch.nn.init.normal_(p)
    x = torch.randint(0, 5, (3, 4)) if shape is None else torch.randn(3, *shape)
    if mapped == "input":
        got = vmap(members[0])(x)
        expected = torch.stack([members[0](row) for row in x])
    else:
        state = stack_module_state(members)
        dims = (0, 0 if mapped == "both" else None)
        got = vmap(lambda state, x: functional_call(members[0], state, (x,)), in_dims=dims)(
            state, x if mapped == "both" else x[0]
        )
        expected = torch.stack([m(x[i] if mapped == "both" else x[0]) for i, m in enumerate(members)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
