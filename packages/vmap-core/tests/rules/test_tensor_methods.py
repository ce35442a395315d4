"""What concerns the tensor object: its metadata by methods and by functions, and requires_grad."""

import pytest
import torch

from vmap_core import vmap
from vmap_core.extend import own_samples

X, D = torch.rand(3, 4, 5), torch.rand(4, 5, dtype=torch.double)
SAMPLES = {
    "plain": X,
    "transposed": X.mT,
    "scalar": X[:, 0, 0],
    "empty": X[:, :0],
    "size one": X[:, :1, :1],
    "no samples": X[:0],
    "integer": X.long(),
    "low precision": X.bfloat16(),
    "complex": torch.complex(X, X).conj(),
}
METHODS = (
    "numel", "nelement", "dim", "ndimension", "size", "stride", "is_contiguous", "storage_offset", "element_size",
    "get_device", "is_complex", "is_floating_point", "is_signed", "is_conj", "is_neg", "is_inference",
)  # fmt: skip
FUNCTIONS = ("numel", "is_complex", "is_floating_point", "is_signed", "is_conj", "is_neg", "is_inference", "get_device")


def answers(x):
    return [getattr(x, m)() for m in METHODS] + [getattr(torch, f)(x) for f in FUNCTIONS]


def one(batch, dim):
    """Return what a sample of a batch is, of an empty one too."""
    return batch.select(dim, 0) if batch.shape[dim] else batch.new_zeros(batch.shape[1:])


@pytest.mark.parametrize("kind", SAMPLES)
def test_metadata_is_the_samples(kind):
    batch = SAMPLES[kind]
    for dim in range(batch.ndim if len(batch) else 1):
        seen = []
        vmap(lambda x, seen=seen: seen.append(answers(x)) or x, in_dims=dim)(batch.movedim(0, dim))
        vmap(vmap(lambda x, seen=seen: seen.append(answers(x)) or x, in_dims=dim))(
            batch.movedim(0, dim).expand(2, *batch.movedim(0, dim).shape)
        )
        assert seen == [answers(one(batch.movedim(0, dim), dim))] * 2


def test_predicates():
    def f(x):
        assert torch.is_tensor(x) and isinstance(x, torch.Tensor) and not torch.is_storage(x)
        assert torch.is_floating_point(x) and not torch.is_complex(x) and x.is_signed()
        assert not torch.is_conj(x) and not torch.is_neg(x) and not torch.is_inference(x) and not x.is_pinned()
        assert torch.is_same_size(x, D) and x.type() == "torch.FloatTensor"
        assert torch.can_cast(x.dtype, torch.double) and torch.promote_types(x.dtype, D.dtype) == torch.double
        return x

    vmap(f)(X)


def test_a_leaf_of_every_sample_and_none_outside():
    """``requires_grad_`` of what is mapped makes a leaf of each sample's own, and leaves the batch as it was."""
    x = X.clone()

    def function(s):
        leaf = s.detach()
        assert not leaf.requires_grad and leaf.requires_grad_() is leaf
        assert leaf.requires_grad and leaf.is_leaf and (leaf * 2).requires_grad
        assert not leaf.requires_grad_(False).requires_grad
        leaf.requires_grad = True
        assert leaf.requires_grad and leaf.shape == s.shape
        return leaf.detach()

    for dim in (0, 1, 2):
        assert torch.equal(vmap(function, in_dims=dim, out_dims=dim)(x), x)
    assert torch.equal(vmap(vmap(function))(x), x)
    assert vmap(function)(x[:0]).shape == (0, 4, 5)
    assert not x.requires_grad


def test_a_tensor_that_all_samples_share_becomes_a_leaf_of_each():
    def function(s):
        leaf = torch.zeros(2)
        leaf.requires_grad = True
        return leaf.detach()

    assert torch.equal(vmap(function)(X), torch.zeros(3, 2))


def test_integers_do_not_require_grad():
    with pytest.raises(RuntimeError, match="floating point"):
        vmap(lambda s: s.requires_grad_())(X.long())


def test_own_samples():
    """A view with a batch dim at every level; gradients by what all samples share are kept apart, then summed."""
    w = torch.ones(5, requires_grad=True)
    out = vmap(lambda s: (own_samples(w) * s).sum(0))(X)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), w)[0], X.sum((0, 1)))
    assert torch.equal(vmap(vmap(own_samples))(X), X)
    assert own_samples(X).data_ptr() == X.data_ptr()
