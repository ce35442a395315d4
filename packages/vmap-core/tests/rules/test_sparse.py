"""Sparse tensors made inside a mapped function of the sample's values, and shared ones, against the loop."""

import warnings

import pytest
import torch

from vmap_core import DataDependentError, UnsupportedError, vmap

AT = torch.tensor([[0, 1, 3, 3], [1, 0, 4, 4]])  # one place twice
ONCE = torch.tensor([[0, 1, 3, 2], [1, 0, 4, 4]])
SHARED = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, -3.0]]).to_sparse()


def coo(w, at=AT):
    return torch.sparse_coo_tensor(at, w, (4, 5))


MADE = {
    "to_dense": lambda w, x, m: coo(w).to_dense(),
    "coalesce": lambda w, x, m: coo(w).coalesce().to_dense(),
    "values": lambda w, x, m: coo(w).coalesce().values(),
    "indices": lambda w, x, m: coo(w).coalesce().indices() * w[0],
    "vector": lambda w, x, m: coo(w) @ x,
    "torch.mv": lambda w, x, m: torch.mv(coo(w, ONCE), x),
    "matrix": lambda w, x, m: coo(w) @ m,
    "torch.sparse.mm": lambda w, x, m: torch.sparse.mm(coo(w), m),
    "of a shared vector": lambda w, x, m: coo(w) @ torch.arange(5.0),
    "of a shared matrix": lambda w, x, m: coo(w) @ torch.arange(10.0).reshape(5, 2),
    "from the left": lambda w, x, m: m.t()[:, :4] @ coo(w),
    "transposed": lambda w, x, m: coo(w).t() @ x[:4],
    "scaled": lambda w, x, m: (coo(w) * 2.0).to_dense(),
    "added": lambda w, x, m: (coo(w) + coo(w.flip(0))).to_dense(),
    "negative": lambda w, x, m: (-coo(w)).to_dense(),
    "sum": lambda w, x, m: torch.sparse.sum(coo(w)),
    "sum over rows": lambda w, x, m: torch.sparse.sum(coo(w), 0).to_dense(),
    "sum over both": lambda w, x, m: torch.sparse.sum(coo(w), (0, 1)),
    "places of the sample": lambda w, x, m: torch.sparse_coo_tensor(x.argsort()[None, :4], w, (5,)).to_dense(),
    "no size": lambda w, x, m: torch.sparse_coo_tensor(AT, w).to_dense(),
    "dense dims": lambda w, x, m: torch.sparse_coo_tensor(AT[:1, :2], m[:2], (4, 2)).to_dense(),
    "of a dense tensor": lambda w, x, m: torch.sparse.mm(m.to_sparse().t(), m),
}
SHARED_USES = {
    "vector": lambda w, x, m: SHARED @ x[:3],
    "matrix": lambda w, x, m: SHARED @ m[:3],
    "from the left": lambda w, x, m: m.t()[:, :2] @ SHARED,
    "torch.sparse.mm": lambda w, x, m: torch.sparse.mm(SHARED, m[:3]),
    "csr": lambda w, x, m: SHARED.to_sparse_csr() @ m[:3],
    "scaled": lambda w, x, m: (SHARED * 2.0) @ x[:3],
    "to_dense": lambda w, x, m: SHARED.to_dense() @ x[:3],
    "sum": lambda w, x, m: torch.sparse.sum(SHARED) * x,
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "f", [*MADE.values(), *SHARED_USES.values()], ids=[*MADE, *(f"shared: {n}" for n in SHARED_USES)]
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_against_the_loop(f, size):
    torch.manual_seed(0)
    w, x, m = (torch.randn(size, *shape, requires_grad=True) for shape in ((4,), (5,), (5, 2)))
    expected = torch.stack([f(*rows) for rows in zip(w, x, m, strict=True)])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, message="vmap")
        for got in (
            vmap(f)(w, x, m),
            vmap(f, in_dims=(1, 1, 2))(w.t(), x.t(), m.permute(1, 2, 0)),
            vmap(vmap(f))(w[None], x[None], m[None])[0],
        ):
            torch.testing.assert_close(got, expected)
            grads = [
                torch.autograd.grad((out * out).sum(), (w, x, m), allow_unused=True, retain_graph=True)
                for out in (got, expected)
            ]
            for ours, theirs in zip(*grads, strict=True):
                torch.testing.assert_close(
                    *(torch.zeros(()) if g is None else g for g in (ours, theirs))
                    if ours is None or theirs is None
                    else (ours, theirs)
                )


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_result():
    w = torch.randn(3, 4)
    out = vmap(coo)(w)
    assert out.layout is torch.sparse_coo
    assert torch.equal(out.to_dense(), torch.stack([coo(v) for v in w]).to_dense())


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.filterwarnings("ignore::vmap_core.FallbackWarning")
def test_what_is_refused():
    w, p = torch.rand(2, 4), torch.tensor([[0, 1, 2, 3], [0, 1, 2, 2]])
    with pytest.raises(DataDependentError, match="differ in size. Instead: pass the size"):
        vmap(lambda w, p: torch.sparse_coo_tensor(p[None], w).to_dense())(w, p)
    with pytest.raises(DataDependentError, match="3 to 4 elements"):
        vmap(lambda w, p: torch.sparse_coo_tensor(p[None], w, (4,)).coalesce().values())(w, p)
    with pytest.raises(UnsupportedError, match="a torch.sparse_csr tensor for each sample.*Instead: a COO tensor"):
        vmap(lambda w: torch.sparse_csr_tensor([0, 2, 4], [0, 1, 0, 1], w, (2, 2)).to_dense())(w)
    with pytest.raises(UnsupportedError, match="product of torch.sparse_coo and torch.sparse_coo"):
        vmap(lambda w: coo(w) @ coo(w).t())(w)
