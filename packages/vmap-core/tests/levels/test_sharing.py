"""Writes to inputs through which samples see each other's memory."""

import functools

import pytest
import torch

from vmap_core import InplaceError, vmap


def loop(f, in_dims, args):
    size = next(a.shape[d] for a, d in zip(args, in_dims, strict=True) if d is not None)
    samples = ([a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)] for i in range(size))
    return torch.stack([f(*sample) for sample in samples])


WRITES = {
    "add_": lambda a, b: a.add_(b.sum()),
    "number": lambda a, b: a.mul_(2),
    "same for all": lambda a, b: a.copy_(torch.zeros(a.shape)),
    "zero_": lambda a, b: a.zero_(),
    "item": lambda a, b: a.__setitem__(0, b.sum()),
    "part": lambda a, b: a[1:].mul_(2),
    "view": lambda a, b: a.view(-1).fill_(3.0),
    "mask": lambda a, b: a.__setitem__(a > 2, 7.0),
    "place": lambda a, b: a[a.argmax()].add_(1),
    "augmented": lambda a, b: a.__iadd__(1),
    "out": lambda a, b: torch.mul(a, 2, out=a),
    "index_fill_": lambda a, b: a.index_fill_(0, torch.tensor([0]), 3.0),
    "foreach": lambda a, b: torch._foreach_add_([a], 1.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_that_later_samples_would_see_is_refused(write):
    def f(a, b):
        write(a, b)
        return a + b.sum()

    x = torch.arange(12.0).reshape(4, 3)
    before = x.clone()
    with pytest.raises(InplaceError, match=r"test_sharing.py:\d+.*other samples see"):
        vmap(f, in_dims=(0, None))(x, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("write", ["add_", "number"])
@pytest.mark.parametrize(
    ("inputs", "in_dims", "refused"),
    [
        (lambda x: (x, x), (0, 0), False),
        (lambda x: (x[:3], x[:3]), (1, 0), True),
        (lambda x: (x[:, :2], x[:, 1:]), (0, 0), False),
        (lambda x: (x[:-1], x[1:]), (0, 0), True),
        (lambda x: (x[:2], x[1:3]), (1, 1), False),
        (lambda x: (x[1:], x[0]), (0, None), False),
        (lambda x: (x[1:], x[3:]), (0, None), True),
        (lambda x: (x.view(-1).unfold(0, 3, 1), torch.ones(1)), (0, None), True),
        (lambda x: (x[:, ::2], torch.ones(1)), (0, None), False),
        (lambda x: (x[:1], x), (0, None), False),  # a single sample
        (lambda x: (x, x.clone()), (0, None), False),
        (lambda x: (x, x.view(torch.int32)), (0, None), True),
        (lambda x: (x, x.view(torch.int32)), (0, 0), False),
    ],
)
def test_only_what_lies_in_the_memory_of_other_samples_is_refused(inputs, in_dims, refused, write):
    def f(a, b):
        WRITES[write](a, b)
        return a + b

    def both():
        return inputs(torch.arange(12.0).reshape(4, 3))

    if refused:
        with pytest.raises(InplaceError):
            vmap(f, in_dims)(*both())
        return
    ours, theirs = both(), both()
    assert torch.equal(vmap(f, in_dims)(*ours), loop(f, in_dims, theirs))
    assert all(map(torch.equal, ours, theirs))


def test_a_tensor_from_around_the_function_counts_as_shared():
    x = torch.ones(3, 2)

    def f(row, table=None):
        return row.add_((x if table is None else table).sum())

    for g in (f, functools.partial(f, table=x), lambda row: row.add_(x.sum())):
        with pytest.raises(InplaceError):
            vmap(g)(x)
    assert torch.equal(vmap(f)(torch.ones(3, 2)), torch.full((3, 2), 7.0))


def test_it_is_looked_at_at_each_level():
    x = torch.ones(3, 3)
    with pytest.raises(InplaceError, match="'inner'"):

        def inner(a, b):
            return a.add_(b.sum())

        vmap(lambda row: vmap(inner, in_dims=(0, None))(row, row))(x)
    each = vmap(vmap(lambda a, b: a.add_(b)))(x, x)
    assert torch.equal(each, torch.full((3, 3), 2.0)) and each.data_ptr() == x.data_ptr()


def test_reads_are_not_refused():
    x = torch.arange(6.0).reshape(3, 2)
    got = vmap(lambda row, table: (row.clone().add_(1) * table).sum(), in_dims=(0, None))(x, x)
    assert torch.equal(got, ((x + 1)[:, None] * x).sum((1, 2)))
