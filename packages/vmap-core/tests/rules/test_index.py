"""Index tensors against the loop: ``aten.index`` and ``index_put``, the operators along one dim, one-hot, embeddings."""

import pytest
import torch
import torch.nn.functional as F

from tests.calls import check_call, check_layout, check_refused
from vmap_core import DataDependentError, UnsupportedError, vmap
from vmap_core.testing import check_rule

X = torch.linspace(-2, 2, 24).sin().reshape(2, 3, 4)
M, S = X[0], torch.tensor(0.7)
I, J = torch.tensor([2, 0, 1, 2]), torch.tensor([[0, 1], [1, 1]])  # noqa: E741
P = torch.tensor([2, 0])  # of different places
aten = torch.ops.aten


def put(x, *args):
    """Write to a copy by `Tensor.index_put_`."""
    x = x.clone()
    return x.index_put_(*args)


CASES = {
    "index": (lambda x, i: aten.index.Tensor(x, [i]), M, I),
    "index of two dims": (lambda x, i, j: aten.index.Tensor(x, [None, i, j]), X, I, I.flip(0)),
    "index with a gap": (lambda x, i, j: aten.index.Tensor(x, [i, None, j]), X, J, J.flip(0)),
    "index, broadcast": (lambda x, i, j: aten.index.Tensor(x, [i, j]), M, J, P),
    "index of the last dim": (lambda x, i: aten.index.Tensor(x, [None, None, i]), X, J),
    "index of the last dims": (lambda x, i, j: aten.index.Tensor(x, [None, i, j]), X, J, P[:1]),
    "index of size one": (lambda x, i: aten.index.Tensor(x, [i]), M[:1], torch.zeros(1, dtype=torch.long)),
    "unsafe index": (lambda x, i: aten._unsafe_index.Tensor(x, [None, i]), M, I),
    "index_put": (lambda x, i, v: torch.index_put(x, (i,), v), M, P, X[1, :2]),
    "index_put of a number": (lambda x, i: torch.index_put(x, (i,), torch.tensor(1, dtype=x.dtype)), M, P),
    "index_put, added": (lambda x, i, v: torch.index_put(x, (i,), v, True), M, I, X[1, :1]),
    "index_put_": (lambda x, i, v: put(x, (i, i), v), M, P, X[1, 0, :2]),
    "index_put_, added": (lambda x, i, v: put(x, (i,), v, True), M, I, X[1, :1]),
    "index_select": (lambda x, i: torch.index_select(x, 1, i), X, I),
    "index_select, negative dim": (lambda x, i: torch.index_select(x, -2, i), X, I),
    # the overload: torch_geometric, which other tests import, puts a function in the place of torch.index_select
    "index_select of a scalar": (lambda x: torch.ops.aten.index_select.default(x, 0, torch.tensor([0])), S),
    "index_select by a scalar": (lambda x, i: torch.index_select(x, 0, i), M, torch.tensor(1)),
    "index_add": (lambda x, i, s: x.index_add(0, i, s), M, I[:3], X[1]),
    "index_add, scaled": (lambda x, i, s: x.index_add(-1, i, s, alpha=2), M, P, X[1, :, :2]),
    "index_add to a scalar": (lambda x, s: x.index_add(0, torch.tensor([0]), s), S, S * 2),
    "index_copy": (lambda x, i, s: x.index_copy(1, i, s), M, P, X[1, :, :2]),
    "index_fill": (lambda x, i: x.index_fill(1, i, 2), M, P),
    "index_fill, negative": (lambda x, i: x.index_fill(0, i, 2), M, -1 - P),
    "index_fill by a tensor": (lambda x, i, v: x.index_fill(0, i, v), M, P, S),
    "index_fill of a scalar": (lambda x, v: x.index_fill(0, torch.tensor([0]), v), S, S * 2),
    "embedding": (lambda w, i: F.embedding(i, w), M, J),
    "embedding, padded": (lambda w, i: F.embedding(i, w, padding_idx=1), M, J),
    "embedding of one": (lambda w, i: F.embedding(i, w), M, torch.tensor(2)),
}
WITHOUT_DERIVATIVE = {"unsafe index"}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, gradients=name not in WITHOUT_DERIVATIVE)


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", ["prod", "mean", "amax", "amin"])
def test_index_reduce(reduce, include_self):
    def op(x, i, s):
        return x.index_reduce(0, i, s, reduce, include_self=include_self)

    check_call(op, M, I[:3], X[1], dtypes=(torch.float64, torch.int64))
    check_call(op, S, torch.tensor([0]), S * 2, in_dims=(0, None, 0), nested=False)


LAID_OUT = {
    "one dim": lambda x, i: aten.index.Tensor(x, [i]),
    "the dim in the middle": lambda x, i: aten.index.Tensor(x, [None, i]),
    "the last dim": lambda x, i: aten.index.Tensor(x, [None, None, i]),
    "adjacent dims": lambda x, i: aten.index.Tensor(x, [None, i, i]),
    "with a gap": lambda x, i: aten.index.Tensor(x, [i, None, i]),
    "of transposed samples": lambda x, i: aten.index.Tensor(x.transpose(0, 1), [i]),
    "index_select": lambda x, i: x.index_select(1, i),
    "index_add": lambda x, i: x.index_add(1, i, x[:, :2]),
    "index_copy": lambda x, i: x.index_copy(2, i, x[..., :2]),
    "index_fill": lambda x, i: x.index_fill(1, i, 2),
    "index_fill of transposed samples": lambda x, i: x.mT.index_fill(1, i, 2),
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_results_lie_as_in_the_loop(name):
    check_layout(LAID_OUT[name], X, torch.tensor([1, 0]))


def test_one_hot():
    assert check_rule(lambda x: F.one_hot(x, 4), J)
    assert check_rule(lambda x: F.one_hot(x, 4), torch.tensor(3))
    assert check_rule(F.one_hot, J, batch_sizes=(3, 1))
    with pytest.raises(DataDependentError, match="one_hot without num_classes"):
        vmap(F.one_hot)(torch.tensor([[0, 1], [0, 2]]))
    for classes, wrong in ((2, 2), (4, -1)):
        with pytest.raises(RuntimeError, match="Class values must be"):
            vmap(lambda x, n=classes: F.one_hot(x, n))(torch.tensor([0, wrong]))
    with pytest.raises(RuntimeError, match="Can not infer"):
        vmap(F.one_hot)(torch.zeros(0, 2, dtype=torch.long))


def test_embeddings_of_every_sample_have_gradients_of_their_own():
    w, i = torch.randn(3, 5, 2, requires_grad=True), torch.tensor([[0, 4], [4, 4], [2, 1]])
    for padding in (None, 4):
        got = vmap(lambda w, i, p=padding: F.embedding(i, w, padding_idx=p))(w, i).square().sum()
        expected = sum(F.embedding(a, b, padding_idx=padding).square().sum() for a, b in zip(i, w, strict=True))
        torch.testing.assert_close(torch.autograd.grad(got, w), torch.autograd.grad(expected, w))
    with pytest.raises(UnsupportedError, match="scale_grad_by_freq"):
        vmap(lambda w, i: F.embedding(i, w, scale_grad_by_freq=True))(w, i)


REFUSED = {
    "index of too many dims": (lambda x, i: aten.index.Tensor(x, [i, i, i]), M, P),
    "indices of other shapes": (lambda x, i, j: aten.index.Tensor(x, [i, j]), M, P, I),
    "index_select, no such dim": (lambda x, i: torch.index_select(x, 2, i), M, P),
    "index_add of other shapes": (lambda x, i, s: x.index_add(0, i, s), M, P, M),
    "index_copy of other dtypes": (lambda x, i, s: x.index_copy(0, i, s), M, P, M[:2].double()),
    "index_put, a mask of another shape": (lambda x, m, v: x.index_put((m,), v), M, I[:2] > 0, M[0, 0]),
    "index_put, values of more dims": (lambda x, i, v: x.index_put((i,), v), M, P[0], M[None, :1]),
    "embedding of truth values": (lambda w, i: torch.nn.functional.embedding(i, w), M, P > 0),
    "index_fill by a vector": (lambda x, i, v: x.index_fill(0, i, v), M, P, M[0]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
