"""An index out of range is an error, as in the loop: it must never reach the data of another sample."""

import pytest
import torch

from vmap_core import vmap

X = torch.arange(12.0).reshape(3, 4)
WEIGHT = torch.arange(24.0).reshape(3, 4, 2)
SOURCE = torch.ones(3, 2)
TOO_HIGH = torch.tensor([[0, 1], [1, 4], [2, 0]])
NEGATIVE = torch.tensor([[0, 1], [1, -1], [2, 0]])
TOO_LOW = torch.tensor([[0, 1], [1, -5], [2, 0]])

WITHOUT_NEGATIVES = {
    "index_add": lambda x, i, s: x.index_add(0, i, s),
    "index_copy": lambda x, i, s: x.index_copy(0, i, s),
    "index_reduce": lambda x, i, s: x.index_reduce(0, i, s, "amax"),
    "index_select": lambda x, i, s: x.index_select(0, i),
    "gather": lambda x, i, s: x.gather(0, i),
    "scatter": lambda x, i, s: x.scatter(0, i, s),
}
WITH_NEGATIVES = {
    "getitem": lambda x, i, s: x[i],
    "take": lambda x, i, s: x.take(i),
    "put": lambda x, i, s: x.put(i, s),
    "index_fill": lambda x, i, s: x.index_fill(0, i, 7.0),
    "index_fill with a batched value": lambda x, i, s: x.index_fill(0, i, s[0]),
}


@pytest.mark.parametrize("x_bdim", [0, None])
@pytest.mark.parametrize("name", WITHOUT_NEGATIVES | WITH_NEGATIVES)
def test_out_of_range(name, x_bdim):
    function = (WITHOUT_NEGATIVES | WITH_NEGATIVES)[name]
    x = X if x_bdim == 0 else X[0]
    for index in (TOO_HIGH, TOO_LOW, *([NEGATIVE] if name in WITHOUT_NEGATIVES else [])):
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
            vmap(function, (x_bdim, 0, 0))(x, index, SOURCE)


@pytest.mark.parametrize("name", WITH_NEGATIVES)
def test_negative(name):
    function = WITH_NEGATIVES[name]
    expected = torch.stack([function(*row) for row in zip(X, NEGATIVE, SOURCE, strict=True)])
    assert torch.equal(vmap(function)(X, NEGATIVE, SOURCE), expected)


@pytest.mark.parametrize("index", [TOO_HIGH, NEGATIVE])
def test_embedding(index):
    with pytest.raises(IndexError, match="out of (range|bounds)"):
        vmap(lambda w, i: torch.nn.functional.embedding(i, w))(WEIGHT, index)
