"""Code of the user's that the engine runs while cotangents are mapped, and that maps functions itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from vmap_core import InplaceError, vmap

W = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
MATRIX = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Sine(torch.autograd.Function):
    """A Function that says how it is mapped; its forward cannot be."""

    @staticmethod
    def forward(x):
        return torch.from_numpy(np.sin(x.numpy()))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def vmap(info, in_dims, x):
        return Sine.apply(x), in_dims[0]


INNER = {  # what is mapped over the 4 rows, each [3]
    "pointwise": torch.sin,
    "relu": F.relu,
    "product": lambda r: MATRIX @ r,
    "linear": lambda r: F.linear(r, MATRIX),
    "softmax, composite": lambda r: F.softmax(F.layer_norm(r, (3,)), 0),
    "writes": lambda r: torch.zeros_like(r).add_(r).mul_(2),
    "a vjp": lambda r: torch.func.vjp(lambda v: MATRIX @ v, r)[1](r)[0],
    "a gradient": lambda r: torch.func.grad(lambda v: v.sin().sum())(r),
    "nested": lambda r: vmap(lambda e: e * r.sum())(r),
    "its own rule": Sine.apply,
}


def in_hook(inner):
    def function(w):
        y = w * 2
        y.register_hook(lambda g: g * vmap(inner)(g))
        return y.sin()

    return function


def in_backward(inner):
    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            return g * vmap(inner)(g)

    return lambda w: Outer.apply(w * 2).sin()


def in_recomputation(inner):
    return lambda w: checkpoint(lambda x: vmap(inner)(x), w, use_reentrant=False)


def in_saved_tensor_hooks(inner):
    def function(w):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: x, lambda x: x + vmap(inner)(x) * 0 if x.shape == W.shape else x
        ):
            return (w * 2).sin()

    return function


def in_the_nodes_hook(inner):
    def function(w):
        y = w * 2
        y.grad_fn.register_prehook(lambda grads: (grads[0] * vmap(inner)(grads[0]),))
        return y.sin()

    return function


PLACES = [in_hook, in_backward, in_recomputation, in_saved_tensor_hooks, in_the_nodes_hook]


@pytest.mark.filterwarnings("ignore:vmap. torch.autograd.grad at .*from outside")
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("place", PLACES)
def test_it_maps_a_function(place, inner):
    w = W.clone().requires_grad_()
    y = place(inner)(w)  # one graph: what is mapped are the vectors
    expected = torch.stack([torch.autograd.grad(y, w, v, retain_graph=True)[0] for v in VECTORS])
    got = vmap(lambda v: torch.autograd.grad(y, w, v, retain_graph=True)[0])(VECTORS)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("inner", ["pointwise", "product", "a gradient", "its own rule"])
@pytest.mark.parametrize("place", [in_hook, in_backward, in_saved_tensor_hooks])
def test_two_levels_out(place, inner):
    w = W.clone().requires_grad_()
    y = place(INNER[inner])(w)
    vectors = torch.stack([VECTORS, VECTORS * 2])
    one = lambda v: torch.autograd.grad(y, w, v, retain_graph=True)[0]  # noqa: E731
    expected = torch.stack([torch.stack([one(v) for v in part]) for part in vectors])
    torch.testing.assert_close(vmap(vmap(one))(vectors), expected)


@pytest.mark.parametrize("inner", ["pointwise", "product", "nested", "a gradient"])
@pytest.mark.parametrize("place", [in_hook, in_backward, in_recomputation, in_saved_tensor_hooks])
def test_the_graph_is_of_each_sample(place, inner):
    def one(x):
        leaf = W.detach().requires_grad_()
        y = (place(INNER[inner])(leaf) * x).sum()
        return torch.autograd.grad(y, leaf)[0]

    torch.testing.assert_close(vmap(one)(VECTORS), torch.stack([one(x) for x in VECTORS]))


@pytest.mark.parametrize("inner", ["pointwise", "linear", "softmax, composite", "writes", "a gradient", "nested"])
def test_overrides_are_switched_off(inner):
    with torch._C.DisableTorchFunction():
        got = vmap(INNER[inner])(W)
    torch.testing.assert_close(got, torch.stack([INNER[inner](r) for r in W]))


def test_a_constant_made_by_a_hook_is_shared():
    """What the engine computes without a mapped operand is one tensor for all samples: a write to it says so."""
    w = W.clone().requires_grad_()
    y = in_hook(lambda r: torch.zeros(3, dtype=r.dtype).add_(r))(w)
    with pytest.raises(InplaceError):
        vmap(lambda v: torch.autograd.grad(y, w, v)[0])(VECTORS)
