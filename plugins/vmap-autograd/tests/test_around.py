"""Tensors that a differentiated function has from around it: made in inference mode, or written to."""

import pytest
import torch
import torch.nn.functional as F

from vmap_autograd import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp
from vmap_core import UnsupportedError, vmap

D = torch.double
Z = torch.tensor([1.0, 2.0], dtype=D)
USUAL = torch.tensor([0.5, 0.25], dtype=D)
with torch.inference_mode():
    W = USUAL.clone()

USES = {
    "grad": lambda w: grad(lambda z: (z * w).sum())(Z),
    "an argument": lambda w: grad(lambda z, w: (z * w).sum())(Z, w),
    "a view": lambda w: grad(lambda z: (z * w[0]).exp().sum())(Z),
    "computed further": lambda w: grad(lambda z: (z * w.sin() * w).sum())(Z),
    "a layer": lambda w: grad(lambda z: F.layer_norm(z, (2,), w, w).square().sum())(Z),
    "vjp": lambda w: vjp(lambda z: z * w, Z)[1](Z),
    "jvp": lambda w: jvp(lambda z: z * w, (Z,), (Z,))[1],
    "linearize": lambda w: linearize(lambda z: z * w, Z)[1](Z),
    "jacrev": lambda w: jacrev(lambda z: z * w)(Z),
    "jacfwd": lambda w: jacfwd(lambda z: z * w)(Z),
    "hessian": lambda w: hessian(lambda z: (z**2 * w).sum())(Z),
    "grad of grad": lambda w: grad(lambda z: grad(lambda y: (y**3 * w).sum())(z).sum())(Z),
    "mapped": lambda w: vmap(grad(lambda z: (z * w).sum()))(Z.expand(3, 2)),
    "mapped, an argument": lambda w: vmap(grad(lambda z, w: (z * w).sum()), in_dims=(0, None))(Z.expand(3, 2), w),
    "mapped, each its own": lambda w: vmap(grad(lambda z, w: z * w))(Z, w),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_of_inference_mode(use):
    torch.testing.assert_close(use(W), use(USUAL))


def test_a_tensor_of_inference_mode_is_not_written_to():
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        grad(lambda z: (W.add_(1) * z).sum())(Z)


@pytest.mark.parametrize("transform", [grad, jacrev, hessian])
def test_written_to(transform):
    kept = torch.zeros(2, dtype=D)

    def f(z):
        kept.copy_(z)
        return (kept * z).sum()

    with pytest.raises(UnsupportedError, match="written to a captured tensor of shape"):
        transform(f)(Z)


def test_written_to_without_a_graph():
    kept = torch.zeros(2, dtype=D)

    def f(z):
        kept.copy_(z.detach())
        return (kept * z).sum()

    assert torch.equal(grad(f)(Z), Z)
    assert torch.equal(kept, Z) and not kept.requires_grad
