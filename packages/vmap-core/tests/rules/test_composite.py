"""Operators said in other operators, against the loop."""

import warnings

import pytest
import torch

from tests.calls import check_call, check_refused
from vmap_core import vmap

X, Y, V = torch.linspace(-2, 2, 20).sin().reshape(4, 5), torch.linspace(-1, 3, 8).cos(), torch.linspace(1, 2, 3)


def strided(op):
    """Return an operator on the memory of its tensor, of a sample whose memory is its own."""
    return lambda x, *args: op(x.contiguous(), *args)


CASES = {
    "unfold_copy": (torch.unfold_copy, X, 1, 3, 2),
    "unfold_copy, negative dim": (torch.unfold_copy, X, -2, 2, 1),
    "as_strided_copy": (strided(torch.as_strided_copy), X, (2, 3), (5, 1)),
    "as_strided_copy, overlapping": (strided(torch.as_strided_copy), Y, (3, 4), (1, 1)),
    "as_strided_copy of a scalar": (torch.as_strided_copy, torch.tensor(2.0), (3,), (0,)),
    "block_diag": (torch.block_diag, X, V, torch.tensor(3.0), torch.ones(1, 1)),
    "block_diag of one": (torch.block_diag, X),
    "block_diag of dtypes": (torch.block_diag, X, torch.arange(3)),
    "renorm": (torch.renorm, X, 2, 0, 1.0),
    "renorm, p of 1": (torch.renorm, X.reshape(2, 2, 5), 1, -1, 0.7),
    "renorm of what is short": (torch.renorm, X, 2, 1, 1e3),
    "renorm of one": (torch.renorm, X[:1, :1], 2, 0, 0.1),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args)


@pytest.mark.parametrize(
    "name",
    SCATTERS := {
        "some": (X, Y[:6].reshape(2, 3), (2, 3), (5, 1)),
        "everything": (Y, Y.flip(0), (8,), (1,)),
        "nothing": (Y, Y[:0], (0,), (1,)),
    },
)
def test_as_strided_scatter(name):
    """PyTorch's own backward gives what is overwritten a gradient; ours is compared with the derivative."""
    x, src, size, stride = SCATTERS[name]
    op = strided(torch.as_strided_scatter)
    check_call(op, x, src, size, stride, gradients=False)
    leaves = torch.stack([x, x * 2]).requires_grad_(), torch.stack([src, src * 2]).requires_grad_()
    out = vmap(lambda x, src: op(x, src, size, stride))(*leaves)
    kept, written = torch.autograd.grad(out.sum(), leaves)
    assert torch.equal(written, torch.ones_like(leaves[1]))
    assert torch.equal(
        kept, torch.as_strided_scatter(torch.ones_like(x), torch.zeros_like(src), size, stride).expand_as(kept)
    )


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_pairs_of_rows(n, p):
    check_call(torch.ops.aten._pdist_forward.default, X[:n], p, dtypes=(torch.float64,), gradients=False)


REFUSED = {
    "block_diag of three dims": (torch.block_diag, V, torch.ones(1, 2, 3)),
    "renorm of a vector": (torch.renorm, V, 2, 0, 1.0),
    "unfold_copy of too much": (torch.unfold_copy, X, 1, 6, 1),
    "as_strided_copy outside": (torch.as_strided_copy, V, (4,), (1,)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.slice_copy(x, 1, 1, None, 2),
        lambda x: torch.select_copy(x, -1, 1),
        lambda x: torch.slice_copy(x),
        lambda x: torch.view_copy(x, (-1,)),
        lambda x: torch.view_copy(x.t(), (x.numel(), 1)),
    ],
)
def test_copies_of_views_take_no_loop(f, dim):
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    samples = x.unbind(dim)
    expected = torch.stack([f(sample) for sample in samples])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = vmap(f, in_dims=dim)(x)
        nested = vmap(vmap(f, in_dims=dim))(x[None])
    assert torch.equal(actual, expected)
    assert torch.equal(nested[0], expected)
    weights = torch.arange(float(expected.numel())).reshape(expected.shape)
    assert torch.equal(*(torch.autograd.grad((out * weights).sum(), x)[0] for out in (actual, expected)))
