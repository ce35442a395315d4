"""Views at places that differ from sample to sample, against the loop."""

import gc
import weakref

import pytest
import torch

from vmap_core import InplaceError, vmap


def item(y, i):
    y[i][0] = 5.0
    return y


def increment(y, i):
    row = y[i]
    row += y.sum()
    return y, row


def column(y, i):
    y[:, i, None].mul_(3)
    return y


def out_argument(y, i):
    torch.add(y[0], 2.0, out=y[i])
    return y


def view_of_view(y, i):
    y[i].view(-1)[1:] = 9.0
    return y


def both_numbers(y, i):
    y[i, i].fill_(4)
    return y


def number_of_row(y, i):
    y[i][i].fill_(4)
    return y


def narrowed(y, i):
    y.narrow(0, i, 2).zero_()
    return y


def later_write(y, i):
    row, part = y[..., i], y[i][:1]
    y.mul_(3)
    return row, part


def siblings(y, i):
    first, second = y[i], y[:, i]
    first.add_(1)
    second.mul_(2)
    return y, first, second


def write_by_index(y, i):
    row = y[i]
    y[i] = 7.0
    return row * 1


def foreach(y, i):
    z = y.clone()
    torch._foreach_add_([y[i], z[:, i]], 1.0)
    return y, z


def index_changed_later(y, i):
    row, i = y[i], i
    j = i.clone()
    other = y[j]
    j.add_(1)
    other.zero_()
    return y, row


def detached(y, i):
    y[i].detach().zero_()
    return y


def shared_target(y, i):
    z = torch.zeros(4, 2)
    whole = z[1:]
    z[i].fill_(1)
    whole[i] += y[0, 0]
    return z


FUNCTIONS = [
    item, increment, column, out_argument, view_of_view, both_numbers, number_of_row, narrowed, later_write, siblings,
    write_by_index, foreach, index_changed_later, detached, shared_target,
]  # fmt: skip
X = torch.arange(48.0).reshape(4, 4, 3) / 10
INDEX = torch.tensor([0, 2, 1, 0])


def stacked(results):
    return tuple(map(torch.stack, zip(*results, strict=True))) if type(results[0]) is tuple else torch.stack(results)


@pytest.mark.parametrize("f", FUNCTIONS)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_equals_the_loop(f, dim):
    x = X.movedim(0, dim)
    expected = stacked([f(x.select(dim, b).clone(), INDEX[b]) for b in range(4)])
    torch.testing.assert_close(vmap(lambda x, i: f(x.clone(), i), in_dims=(dim, 0))(x, INDEX), expected)


@pytest.mark.parametrize("f", FUNCTIONS)
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0)])
def test_equals_the_loop_nested(f, dims):
    n = 4
    xs = torch.stack((X, X + 1, X * 2, X - 3)) if dims[0] == 0 else X
    index = torch.stack((INDEX, INDEX.flip(0), INDEX, INDEX)) if dims[1] == 0 and dims[0] == 0 else INDEX

    def g(x, i):
        return f(x.clone(), i)

    if dims == (0, 0):
        actual = vmap(vmap(g))(xs, index)
        expected = stacked([stacked([g(xs[a, b], index[a, b]) for b in range(n)]) for a in range(n)])
    elif dims == (0, None):  # the number differs at the outer level only
        actual = vmap(lambda x, i: vmap(lambda r: g(r, i))(x))(xs, index)
        expected = stacked([stacked([g(xs[a, b], index[a]) for b in range(n)]) for a in range(n)])
    else:  # and at the inner level only
        actual = vmap(lambda x: vmap(lambda i: g(x, i))(index))(xs)
        expected = stacked([stacked([g(xs[a], index[b]) for b in range(n)]) for a in range(n)])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("f", [f for f in FUNCTIONS if f is not out_argument])  # PyTorch does not differentiate out=
def test_gradients_equal_those_of_the_loop(f):
    def loss(results):
        return sum((r * r * torch.arange(r.numel()).reshape(r.shape)).sum() for r in results if r.requires_grad)

    def tuples(out):
        return out if type(out) is tuple else (out,)

    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    actual = loss(tuples(vmap(lambda x, i: f(x * 2, i))(x, INDEX)))
    expected = loss(tuples(stacked([f(y[b] * 2, INDEX[b]) for b in range(4)])))
    for a, b in zip(torch.autograd.grad(actual, x), torch.autograd.grad(expected, y), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("f", FUNCTIONS)
def test_equals_the_loop_without_gradients(f, mode):
    with mode():
        expected = stacked([f(X[b].clone(), INDEX[b]) for b in range(4)])
        torch.testing.assert_close(vmap(lambda x, i: f(x.clone(), i))(X, INDEX), expected)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_view_of_what_differs_at_the_outer_level_only_is_written_through(dim):
    x, expected = X.movedim(0, dim).unsqueeze(0).repeat(4, 1, 1, 1), X.clone().unsqueeze(0).repeat(4, 1, 1, 1)
    vmap(lambda x, i: vmap(lambda row: row[..., i].unsqueeze(0).fill_(1), in_dims=dim)(x))(x, INDEX % 3)
    for rows, i in zip(expected, INDEX % 3, strict=True):
        rows[..., i] = 1
    assert torch.equal(x.movedim(dim + 1, 1), expected)


def test_a_write_to_what_all_samples_share_is_refused():
    table = torch.zeros(3, 2)
    with pytest.raises(InplaceError, match="outside"):
        vmap(lambda i: table[i].add_(1))(INDEX)
    assert not table.any()


def test_one_call_that_writes_to_a_view_and_its_base_is_refused():
    with pytest.raises(InplaceError, match="two calls"):
        vmap(lambda x, i: torch._foreach_add_([x[i], x], 1.0))(X.clone(), INDEX)


def test_what_is_gathered_is_let_go():
    kept = []

    def f(x, i):
        for _ in range(5):
            x = x + x[i]
        level = i._level
        kept.append(weakref.ref(level))
        assert len(level.gathered) <= 2
        return x

    gc.disable()
    try:
        vmap(f)(torch.ones(4, 3, 3), INDEX)
        assert kept[0]() is None
    finally:
        gc.enable()
