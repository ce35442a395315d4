"""Gathering and scattering along a dim, flat places, masks, triangles and diagonals, against the loop."""

import pytest
import torch

from tests.calls import check_call, check_refused
from vmap_core import vmap
from vmap_core.testing import check_rule

X = torch.linspace(-2, 2, 24).sin().reshape(2, 3, 4)
M, V, S = X[0], X[0, 0], torch.tensor(0.7)
I = torch.tensor([[2, 0, 1], [0, 1, 2]])  # noqa: E741
FLAT = torch.tensor([[0, 5], [11, 7]])
MASK = torch.tensor([[True, False, False, True], [False, False, True, True], [True, True, False, False]])
ZERO = torch.tensor([0])

CASES = {
    "gather": (lambda x, i: torch.gather(x, 1, i), M, I),
    "gather, first dim": (lambda x, i: torch.gather(x, -2, i), M, I),
    "gather of size one": (lambda x, i: torch.gather(x, 0, i), V[:1], ZERO),
    "gather of a scalar": (lambda x, i: torch.gather(x, 0, i), S, ZERO),
    "gather by a scalar": (lambda x, i: torch.gather(x, 0, i), V, torch.tensor(2)),
    "gather of nothing": (lambda x, i: torch.gather(x, 1, i), M, I[:0]),
    "take_along_dim": (lambda x, i: torch.take_along_dim(x, i, 1), M[:2], I),
    "scatter": (lambda x, i, s: torch.scatter(x, 1, i, s), M, I, X[1, :2]),
    "scatter of a number": (lambda x, i: torch.scatter(x, 1, i, 2), M, I),
    "scatter to a scalar": (lambda x, i, s: torch.scatter(x, 0, i, s), S, ZERO, V[:1]),
    "scatter, added numbers": (lambda x, i: torch.scatter(x, 0, i, 3, reduce="add"), M, I),
    "scatter_add": (lambda x, i, s: torch.scatter_add(x, 0, i, s), M, I[:, :2], X[1]),
    "take": (torch.take, M, FLAT),
    "take, negative": (torch.take, M, FLAT - 12),
    "take of a scalar": (torch.take, S, ZERO),
    "put": (lambda x, i, s: x.put(i, s), M, FLAT, X[1, :2, :2]),
    "put, added": (lambda x, i, s: x.put(i, s, True), M, FLAT % 2, X[1, :2, :2]),
    "masked_fill": (lambda x, m: x.masked_fill(m, 1), M, MASK),
    "masked_fill, broadcast": (lambda x, m: x.masked_fill(m, 1), X, MASK[0]),
    "masked_fill by a tensor": (torch.masked_fill, M, MASK, S),
    "masked_fill of fewer dims": (lambda x, m: x.masked_fill(m, 1), V, MASK),
    "masked_scatter": (torch.masked_scatter, M, MASK, X[1]),
    "masked_scatter of nothing": (torch.masked_scatter, M, torch.zeros(4, dtype=torch.bool), M),
    "masked_scatter, broadcast": (torch.masked_scatter, X, MASK, X.flip(0)),
    "tril": (torch.tril, X, 1),
    "triu": (torch.triu, M, -1),
    "triu of one": (torch.triu, M[:1, :1]),
    "trace": (torch.trace, M),
    "diag_embed": (torch.diag_embed, M, 1),
    "diag_embed, dims": (torch.diag_embed, M, -1, 0, 2),
    "diag": (torch.diag, V),
    "fill": (lambda x: torch.fill(x, 2), M),
    "fill by a tensor": (torch.fill, M, S),
    "fill_diagonal_": (lambda x: x.clone().fill_diagonal_(2), M),
    "fill_diagonal_, wrapped": (lambda x: x.clone().fill_diagonal_(2, wrap=True), X.reshape(8, 3)),
    "fill_diagonal_ of three dims": (lambda x: x.clone().fill_diagonal_(2), X[:, :2, :2]),
}
WITHOUT_DERIVATIVE = {"scatter, added numbers"}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, gradients=name not in WITHOUT_DERIVATIVE)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "prod", "mean", "amax", "amin"])
def test_scatter_reduce(reduce, include_self):
    def op(x, i, s):
        return torch.scatter_reduce(x, 0, i, s, reduce, include_self=include_self)

    check_call(op, M, I[:, :2], X[1], dtypes=(torch.bfloat16, torch.int64))


@pytest.mark.parametrize("name", ["scatter_", "scatter_add_", "put_", "masked_scatter_", "masked_fill_", "tril_"])
def test_in_place(name):
    args = {"put_": (FLAT, X[1, :2, :2]), "masked_scatter_": (MASK, X[1]), "masked_fill_": (MASK, S), "tril_": ()}
    given = args.get(name, (I, X[1, :2]))

    def op(x, *rest):
        return getattr(x, name)(*((1,) if name.startswith("scatter") else ()), *rest)

    assert check_rule(op, M, *given)


REFUSED = {
    "gather of other ranks": (lambda x, i: torch.gather(x, 0, i), V, I),
    "gather of floats": (lambda x: torch.gather(x, 0, x), M),
    "scatter of other dtypes": (lambda x, i, s: torch.scatter(x, 1, i, s), M, I, X[1].double()),
    "masked_fill by a vector": (lambda x, m, v: x.masked_fill(m, v), M, MASK, V),
    "masked_fill by what does not fit": (lambda x, m, v: x.masked_fill(m, v), I, I > 0, torch.tensor(1 + 2j)),
    "masked_fill by what is too large": (lambda x, m, v: x.masked_fill(m, v), I.char(), I > 0, torch.tensor(300)),
    "masked_fill by infinity": (lambda x, m, v: x.masked_fill(m, v), I, I > 0, torch.tensor(torch.inf)),
    "index_fill by what is too large": (lambda x, v: x.index_fill(0, ZERO, v), I.char(), torch.tensor(300)),
    "full_like of what is too large": (lambda x, v: torch.full_like(x, v), I.char(), torch.tensor(300)),
    "masked_fill by numbers": (lambda x: x.masked_fill(x, 1), M),
    "masked_scatter of too few": (torch.masked_scatter, M, MASK, V[:2]),
    "tril of a vector": (torch.tril, V),
    "trace of a vector": (torch.trace, V),
    "trace of truth values": (torch.trace, MASK),
    "take at places of 32 bits": (torch.take, M, FLAT.int()),
    "fill by a vector": (torch.fill, M, V),
    "fill_diagonal_ of a vector": (lambda x: x.clone().fill_diagonal_(2), V),
    "fill_diagonal_ of unequal dims": (lambda x: x.clone().fill_diagonal_(2), X),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])


@pytest.mark.parametrize("value", [2.7, -3, 1 + 0j, True, -1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float16, torch.float32, torch.complex64])
def test_numbers_that_fit(dtype, value):
    x, mask, value = torch.zeros(3, dtype=dtype), torch.tensor([True, False, True]), torch.tensor(value)
    try:
        x.masked_fill(mask, value)
    except RuntimeError:
        check_refused(lambda x, m, v: x.masked_fill(m, v), x, mask, value)
    else:
        check_call(lambda x, m, v: x.masked_fill(m, v), x, mask, value, dtypes=(), gradients=False)


def test_masked_scatter_of_an_empty_outer_batch():
    x, mask = torch.zeros(0, 3, 2), torch.zeros(0, 3, 2, dtype=torch.bool)
    assert vmap(vmap(torch.masked_scatter))(x, mask, x).shape == (0, 3, 2)
