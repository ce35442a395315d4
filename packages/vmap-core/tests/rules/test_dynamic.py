"""Results as long as the values say: mapped where all samples have one length, an error where they do not."""

import pytest
import torch

from vmap_core import DataDependentError, vmap
from vmap_core.testing import check_rule

SIZES = (3, 1)  # of an empty batch nobody knows
BITS = torch.eye(3, dtype=torch.bool)  # as many true in every row and column, however it is rolled

OPERATIONS = {
    "nonzero": lambda x, m: torch.nonzero(m),
    "nonzero of numbers": lambda x, m: (x * m).nonzero(),
    "nonzero as tuple": lambda x, m: torch.nonzero(m, as_tuple=True),
    "argwhere": lambda x, m: torch.argwhere(m),
    "where": lambda x, m: torch.where(m),
    "masked_select": torch.masked_select,
    "masked_select, broadcast": lambda x, m: torch.masked_select(x, m[0]),
    "index": lambda x, m: x[m],
    "index of fewer dims": lambda x, m: x[m[:, 2]],
    "index behind others": lambda x, m: x[1, m[0]],
    "index behind a slice": lambda x, m: x[:, m[0]],
    "index behind an ellipsis": lambda x, m: x[..., m[0]],
    "index of aten": lambda x, m: torch.ops.aten.index.Tensor(x, [m]),
    "index of another tensor": lambda x, m: torch.arange(9.0).reshape(3, 3)[m] * x.sum(),
    "unique": lambda x, m: torch.unique(x),
    "unique of bools": lambda x, m: torch.unique(m.int()),
    "unique, all of it": lambda x, m: torch.unique(m.int() * 3, return_inverse=True, return_counts=True),
    "unique of one": lambda x, m: torch.unique(x[0, 0], return_inverse=True, return_counts=True),
    "unique of none": lambda x, m: torch.unique(x[:0], return_inverse=True, return_counts=True),
    "unique_consecutive": lambda x, m: torch.unique_consecutive(m[:, 2].int(), return_inverse=True, return_counts=True),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_equal_to_the_loop(name):
    assert check_rule(OPERATIONS[name], torch.randn(3, 3), BITS, batch_sizes=SIZES)


def test_scalars():
    for f in (torch.nonzero, torch.argwhere, torch.where, lambda m: torch.nonzero(m, as_tuple=True)):
        for bit in (torch.tensor(True), torch.tensor(False)):
            got, expected = vmap(f)(torch.stack([bit, bit])), f(bit)
            pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
            for g, e in pairs:
                assert torch.equal(g, torch.stack([e, e]))
    assert vmap(torch.nonzero)(torch.ones(2)).shape == (2, 1, 0)
    assert vmap(lambda x: x[x > 0])(torch.ones(2)).shape == (2, 1)
    assert vmap(lambda x: x[x > 0])(-torch.ones(2)).shape == (2, 0)
    assert vmap(torch.masked_select)(torch.ones(2), torch.ones(2, dtype=torch.bool)).shape == (2, 1)


ASSIGNMENTS = {
    "one value for each true element": lambda x, m, v: x.__setitem__(m, v),
    "with another index": lambda x, m, v: x.__setitem__((1, m[0]), v[:1]),
    "with a slice": lambda x, m, v: x.__setitem__((slice(None), m[0]), v[:, None]),
    "masked_scatter": lambda x, m, v: x.masked_scatter_(m, v),
    "index_put": lambda x, m, v: x.index_put_((m,), v, accumulate=True),
}


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_assignments(name):
    def function(x, m, v):
        x = x.clone()
        ASSIGNMENTS[name](x, m, v)
        return x

    assert check_rule(function, torch.randn(3, 3), BITS, torch.randn(3), batch_sizes=SIZES)


def test_lengths_that_differ():
    x = torch.tensor([[1, 0], [1, 1]])
    for f in (torch.nonzero, torch.argwhere, torch.unique, torch.unique_consecutive, torch.where):
        with pytest.raises(DataDependentError, match=r"(?s)dynamic shape.*test_dynamic.py:\d+.*from 1 to 2.*Instead:"):
            vmap(f)(x)
        with pytest.raises(DataDependentError, match="dynamic shape"):
            vmap(vmap(f))(x[:, None])  # at the outer level
    with pytest.raises(DataDependentError, match=r"boolean mask.*from 1 to 2.*torch\.where"):
        vmap(lambda x: x[x > 0])(x)
    with pytest.raises(DataDependentError, match="masked_select.*from 1 to 2"):
        vmap(lambda x: torch.masked_select(x, x > 0))(x)
    with pytest.raises(DataDependentError, match="the batch is empty"):
        vmap(torch.nonzero)(x[:0])
    with pytest.raises(DataDependentError, match="along a dim"):
        vmap(lambda x: torch.unique(x, dim=0))(torch.ones(2, 3, 2))


def test_a_scalar_mask():
    def function(x, y):
        x = x.clone()
        mask = (x > y).clone()
        x[mask] = 1 - (x * 2)[mask]
        return x

    assert check_rule(function, torch.tensor(3.0), torch.tensor(-1.0), batch_sizes=SIZES)

    def single(x, y):
        x = x.clone()
        x[x > y] = 1.0
        return x

    assert check_rule(single, torch.tensor(3.0), torch.tensor(2.9))


@pytest.mark.parametrize("size", [0, 2, 8])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 0)])
def test_nonzero_static(shape, size):
    check_rule(lambda x: torch.nonzero_static(x, size=size, fill_value=7), torch.randint(0, 2, shape))
