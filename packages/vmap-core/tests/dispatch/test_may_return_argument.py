"""Operators that return a view or their argument itself, though not every schema says so: what is written to one is seen in the other."""

import pytest
import torch

from vmap_core import InplaceError, vmap

X = torch.randn(2, 2, 2)
SAME = {
    "type_as": lambda x: x.type_as(x),
    "to": lambda x: x.to(x),
    "to, dtype": lambda x: x.to(x.dtype),
    "real": lambda x: x.real,
    "torch.real": torch.real,
    "conj": torch.conj,
    "conj_physical": torch.conj_physical,
    "resolve_conj": torch.resolve_conj,
    "resolve_neg": torch.resolve_neg,
    "positive": torch.positive,
    "flatten of one dim": lambda x: x.flatten(-1),
    "contiguous": lambda x: x.contiguous(),
    "sum_to_size": lambda x: x.sum_to_size(x.shape),
    "to_dense": lambda x: x.to_dense(),
    "dropout, not in training": lambda x: torch.nn.functional.dropout(x, 0.5, False),
    "dropout, by keyword": lambda x: torch.dropout(input=x, p=0.5, train=False),
    "alpha_dropout, not in training": lambda x: torch.nn.functional.alpha_dropout(x, 0.5, False),
    "atleast_2d": torch.atleast_2d,
}
VIEWS = {
    "expand_as": lambda x: x.expand_as(x),
    "view_as": lambda x: x.view_as(x),
    "reshape_as": lambda x: x.reshape_as(x),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[0])[0],
    "atleast_3d": torch.atleast_3d,
    "einsum": lambda x: torch.einsum("ij->ji", x),
    "einsum, diagonal": lambda x: torch.einsum("ii->i", x),
    "meshgrid": lambda x: torch.meshgrid(x[0], torch.ones(1), indexing="ij")[0],
    "cartesian_prod": lambda x: torch.cartesian_prod(x[0]),
    "unsafe_chunk": lambda x: x.unsafe_chunk(2)[0],
    "unsafe_split": lambda x: x.unsafe_split(1)[1],
}
MAKERS = {
    "input": lambda x: x,
    "result": lambda x: x * 2,
    "made inside": lambda x: torch.ones(2, 2),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", SAME | VIEWS)
def test_writes_are_seen(name, maker):
    def function(x):
        made = MAKERS[maker](x)
        other = (SAME | VIEWS)[name](made)
        other.mul_(x[0, 0].detach() + 3.0)
        return made, other, x * 1

    ours, theirs = X.clone(), X.clone()
    for dim in (0, 1):
        expected = [torch.stack(r) for r in zip(*map(function, theirs.unbind(dim)), strict=True)]
        got = vmap(function, in_dims=dim)(ours)
        for e, g in zip(expected, got, strict=True):
            torch.testing.assert_close(g, e)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", SAME)
def test_the_tensor_itself(name, maker):
    def function(x):
        made = MAKERS[maker](x)
        other = SAME[name](made)
        assert other is made
        return other

    function(X[0])
    vmap(function)(X)


@pytest.mark.parametrize("name", ["type_as", "to", "expand_as", "view_as", "reshape_as"])
def test_what_takes_only_a_shape_or_dtype_from_a_mapped_tensor(name):
    shared = torch.ones(2, 2)
    other = vmap(lambda x: getattr(shared, name)(x) + 0 * x)(X)
    assert torch.equal(other, torch.ones(2, 2, 2))
    with pytest.raises(InplaceError, match="outside the mapped function"):
        vmap(lambda x: getattr(shared, name)(x).add_(1.0) + x)(X)
    assert torch.equal(shared, torch.ones(2, 2))


def test_a_detached_tensor_from_outside():
    shared = torch.ones(2)
    with pytest.raises(InplaceError, match="outside the mapped function"):
        vmap(lambda x: shared.detach().add_(1.0) + x[0])(X)
    with pytest.raises(InplaceError, match="outside the mapped function"):
        vmap(lambda x: shared.detach()[:1].zero_() + x[0])(X)
    assert torch.equal(shared, torch.ones(2))
