"""Tables that are renormed when they are read, against the loop: of each sample, and one that all samples share."""

import pytest
import torch
import torch.nn.functional as F

from vmap_core import vmap
from vmap_core.testing import check_rule

TABLE = torch.linspace(-3, 3, 15).reshape(5, 3)
INDICES = torch.tensor([[0, 4], [1, 1]])


def lookup(table, indices, p=2.0):
    return F.embedding(indices, table, max_norm=1.0, norm_type=p)


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "indices", [INDICES, INDICES[0], INDICES[0, 1], INDICES[:0]], ids=["two dims", "row", "one", "none"]
)
def test_tables_of_every_sample(indices, dtype, p):
    """What is written to the tables is compared too."""
    assert check_rule(lambda w, i: lookup(w, i, p), TABLE.to(dtype), indices)


def test_one_table_for_all():
    """It gets what the loop leaves behind: every row that any sample reads."""
    indices = torch.tensor([[0, 1], [1, 3], [1, 1]])
    mine, theirs = TABLE.clone(), TABLE.clone()
    got = vmap(lambda i: lookup(mine, i))(indices)
    torch.testing.assert_close(got, torch.stack([lookup(theirs, i) for i in indices]))
    torch.testing.assert_close(mine, theirs)
    assert torch.equal(mine[2], TABLE[2]) and not torch.equal(mine[0], TABLE[0])


def test_empty_batches():
    table = torch.zeros(0, 5, 3)
    assert vmap(lookup, in_dims=(0, None))(table, INDICES).shape == (0, 2, 2, 3)
    assert vmap(lambda i: lookup(TABLE.clone(), i))(INDICES[None][:0]).shape == (0, 2, 2, 3)


@pytest.mark.parametrize("bad", [5, -1])
def test_an_index_out_of_range_reaches_no_other_samples_rows(bad):
    tables = TABLE.expand(3, 5, 3).clone()
    with pytest.raises((IndexError, RuntimeError)):
        lookup(TABLE.clone(), torch.tensor([bad]))
    with pytest.raises((IndexError, RuntimeError)):
        vmap(lookup)(tables, torch.full((3, 1), bad))
    assert torch.equal(tables, TABLE.expand(3, 5, 3))
