"""First and second derivatives of layers that normalise, by batches of vectors over one graph, and inside mapped functions."""

import pytest
import torch
import torch.nn.functional as F

from vmap_core import vmap


def channels_last(f):
    return lambda x, w, b: f(x.transpose(1, -1), w, b).transpose(1, -1)


MEAN, VAR = torch.linspace(-1, 1, 6, dtype=torch.float64), torch.linspace(0.5, 2, 6, dtype=torch.float64)
LAYERS = {
    "layer_norm": lambda x, w, b: F.layer_norm(x, (6,), w, b),
    "layer_norm, no bias": lambda x, w, b: F.layer_norm(x, (6,), w) + b,
    "layer_norm, two dims": lambda x, w, b: F.layer_norm(x, (3, 6)) * w + b,
    "batch_norm": channels_last(lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    "batch_norm, plain": channels_last(
        lambda x, w, b: F.batch_norm(x, None, None, training=True) * w[:, None] + b[:, None]
    ),
    "batch_norm, in evaluation": channels_last(lambda x, w, b: F.batch_norm(x, MEAN, VAR, w, b)),
    "group_norm": channels_last(lambda x, w, b: F.group_norm(x, 2, w, b)),
}


def tensors(dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((4, 3, 6), (6,), (6,))]


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_batched_vectors_over_one_graph(layer):
    x, w, b = tensors()
    y, vectors = layer(x, w, b), torch.randn(5, 4, 3, 6, dtype=x.dtype)

    def gradients(v):
        return torch.autograd.grad(y, (x, w, b), v, create_graph=True)

    ours, loops = vmap(gradients)(vectors), [*map(torch.stack, zip(*map(gradients, vectors), strict=True))]
    for got, expected in zip(ours, loops, strict=True):
        torch.testing.assert_close(got, expected)
    second = [torch.autograd.grad(sum(g.sin().sum() for g in gs), (x, w), retain_graph=True) for gs in (ours, loops)]
    for got, expected in zip(*second, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dim", [0, 1])
def test_second_derivatives_inside(layer, dim):
    x, w, b = (t.detach() for t in tensors())

    def f(x):
        x, own = x.detach()[None].requires_grad_(), w.detach().requires_grad_()
        first = torch.autograd.grad(layer(x, own, b).sin().sum(), (x, own), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, own))

    got = vmap(f, in_dims=dim)(x.movedim(0, dim))
    for ours, loops in zip(got, zip(*map(f, x), strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(loops))


@pytest.mark.parametrize("name", ["layer_norm", "batch_norm"])
def test_half_precision_gradients_have_the_inputs_dtype(name):
    x, w, b = tensors(torch.bfloat16)
    y = LAYERS[name](x, w, b)
    vectors = torch.randn(2, 4, 3, 6, dtype=torch.bfloat16)
    for g, t in zip(
        vmap(lambda v: torch.autograd.grad(y, (x, w, b), v, retain_graph=True))(vectors), (x, w, b), strict=True
    ):
        assert g.dtype is torch.bfloat16 and g.shape == (2, *t.shape)
        assert torch.isfinite(g).all()
