"""Joining, repeating and rearranging, against the loop."""

import pytest
import torch

from tests.calls import check_call, check_refused
from vmap_core import DataDependentError, vmap
from vmap_core.testing import check_rule

X = torch.linspace(-2, 2, 24).sin().reshape(2, 3, 4)
M, V, S = X[0], X[0, 0], torch.tensor(-0.5)
ONE = torch.full((1, 1), 3.0)

CASES = {
    "cat": (lambda *t: torch.cat(t), M, M[:1] * 2, M[1:]),
    "cat, last dim": (lambda *t: torch.cat(t, -1), X, X[..., :1]),
    "cat of ones": (lambda *t: torch.cat(t, 1), ONE, ONE + 1),
    "cat with nothing": (lambda *t: torch.cat(t), torch.zeros(0), M, M),
    "cat of dtypes": (lambda *t: torch.cat(t), V, torch.arange(2)),
    "concat of one": (lambda t: torch.concat([t]), M),
    "stack": (lambda *t: torch.stack(t), M, M * 2),
    "stack, last dim": (lambda *t: torch.stack(t, -1), M, M * 2, M * 3),
    "stack in the middle": (lambda *t: torch.stack(t, 1), M, M * 2),
    "stack of scalars": (lambda *t: torch.stack(t), S, S * 2),
    "hstack": (lambda *t: torch.hstack(t), V, V[:1]),
    "vstack": (lambda *t: torch.vstack(t), M, V),
    "dstack": (lambda *t: torch.dstack(t), M, M),
    "column_stack": (lambda *t: torch.column_stack(t), V, V),
    "flip": (torch.flip, X, (0, 2)),
    "flip, negative": (torch.flip, X, (-1,)),
    "flip of a scalar": (torch.flip, S, ()),
    "fliplr": (torch.fliplr, M),
    "flipud": (torch.flipud, V),
    "roll": (torch.roll, X, (1, -2), (0, -1)),
    "roll, flat": (torch.roll, X, 5),
    "roll, one dim": (torch.roll, X, 7, 1),
    "roll of a scalar": (torch.roll, S, 2),
    "rot90": (torch.rot90, X, 3, (0, 2)),
    "rot90 back": (torch.rot90, M, -1),
    "repeat": (lambda x: x.repeat(2, 1, 3), X),
    "repeat, more dims": (lambda x: x.repeat(2, 1, 3), V),
    "repeat of nothing": (lambda x: x.repeat(0, 2), V),
    "tile": (torch.tile, X, (2,)),
    "tile, more dims": (torch.tile, V, (2, 1, 2)),
    "repeat_interleave": (torch.repeat_interleave, X, 2, 1),
    "repeat_interleave, flat": (torch.repeat_interleave, X, 3),
    "repeat_interleave of a scalar": (torch.repeat_interleave, S, 3),
    "constant_pad_nd": (torch.constant_pad_nd, X, [1, 2, 0, 1], 1),
    "constant_pad_nd, cut": (torch.constant_pad_nd, X, [-1, 0]),
    "select_scatter": (torch.select_scatter, X, X[:, 0] * 2, 1, -1),
    "slice_scatter": (torch.slice_scatter, X, X[..., :2] * 2, -1, 0, 4, 2),
    "slice_scatter of everything": (torch.slice_scatter, V, V.flip(0)),
    "diagonal_scatter": (torch.diagonal_scatter, M, V[:3], 1),
    "diagonal_scatter, dims": (torch.diagonal_scatter, X, X[..., 0].mT * 2, 0, -1, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args)


@pytest.mark.parametrize("dim", [None, 0, 1])
def test_numbers_of_repeats(dim):
    """Shared ones may be anything; those of each sample must be as many in total, or the results have other lengths."""
    counts = torch.tensor([2, 0, 1, 1])
    x = M.mT if dim == 0 else M if dim == 1 else V
    check_call(lambda x: torch.repeat_interleave(x, counts, dim), x)
    assert check_rule(lambda x, n: torch.repeat_interleave(x, n, dim), x, counts, batch_sizes=(3, 1))
    check_call(lambda x: torch.repeat_interleave(x, torch.tensor(2), dim), x)
    with pytest.raises(DataDependentError, match="repeat_interleave"):
        vmap(lambda n: torch.repeat_interleave(x, n, dim))(torch.stack([counts, counts + 1]))


REFUSED = {
    "cat of other sizes": (lambda *t: torch.cat(t), M, X[0, :, :2]),
    "cat of other ranks": (lambda *t: torch.cat(t), M, V),
    "cat of scalars": (lambda *t: torch.cat(t), S, S),
    "cat, no such dim": (lambda *t: torch.cat(t, 2), M, M),
    "stack of other shapes": (lambda *t: torch.stack(t), M, V),
    "stack, no such dim": (lambda *t: torch.stack(t, 3), M, M),
    "flip, no such dim": (torch.flip, M, (2,)),
    "flip of a scalar, no such dim": (torch.flip, S, (1,)),
    "roll of dims alone": (torch.roll, M, (1,), (0, 1)),
    "roll without dims": (torch.roll, M, (1, 2)),
    "repeat of fewer dims": (lambda x: x.repeat(2), M),
    "repeat_interleave, negative": (torch.repeat_interleave, V, -1),
    "rot90 of a vector": (torch.rot90, V),
    "select_scatter of another shape": (torch.select_scatter, M, V, 1, 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
