"""In-place operations: tensors made inside are promoted with their views, tensors from outside are refused."""

import itertools

import pytest
import torch

from vmap_core import InplaceError, vmap
from vmap_core.testing import check_rule

X = torch.arange(12.0).reshape(3, 4) + 1


def check(function, *args):
    """Compare with the Python loop."""
    expected = torch.stack([function(*row) for row in zip(*args, strict=True)])
    assert torch.equal(vmap(function)(*args), expected)


def test_write_to_a_new_tensor():
    def f(x):
        out = torch.zeros(4)
        for i in range(4):
            out[i] = x[i] * i
        return out

    check(f, X)


def test_views_made_before_the_write_follow():
    def f(x):
        out = torch.zeros(2, 4)
        row, column = out[0], out.t()[1]
        flat = out.view(-1)
        row.copy_(x)
        column.add_(x[:2])
        flat[-1] += x.sum()
        return torch.cat([out.reshape(-1), row, column, flat])

    check(f, X)


def test_write_through_an_unbatched_view_of_a_view():
    def f(x):
        out = torch.zeros(2, 3, 4)
        out[0][1].add_(x)
        out.transpose(0, 2)[0] += 1
        return out

    check(f, X)


def test_results_of_shared_tensors_are_owned():
    w = torch.ones(4)

    def f(x):
        y = w * 2
        y += x
        z = w.clone()
        z[0] = x[1]
        return y + z

    check(f, X)
    assert torch.equal(w, torch.ones(4))


def test_batched_writes_go_through_to_the_input():
    x = X.clone()
    vmap(lambda row: row.mul_(2)[1:].zero_())(x)
    assert torch.equal(x[:, 0], X[:, 0] * 2) and not x[:, 1:].any()


def test_inplace_returns_self():
    def f(x):
        y = x.clone()
        assert y.add_(1) is y and y.t_() is y and y.unsqueeze_(0) is y and y.squeeze_() is y
        assert torch.add(x, x, out=y) is y
        y += x
        return y

    check(f, X)


def test_out_arguments():
    def f(x):
        out = torch.empty(4)
        values, indices = torch.empty(()), torch.empty((), dtype=torch.long)
        torch.max(x, 0, out=(values, indices))
        return torch.mul(x, 3, out=out) + values + indices

    check(f, X)


@pytest.mark.parametrize(
    "write",
    [
        lambda t, x: t.add_(x),
        lambda t, x: t.__setitem__(0, x[0]),
        lambda t, x: t[1:].copy_(x[1:]),
        lambda t, x: torch.add(x, x, out=t),
        lambda t, x: t.detach().mul_(x),
        lambda t, x: t.index_put_((torch.tensor([0]),), x[:1]),
    ],
)
def test_a_tensor_from_outside_is_refused(write):
    plain = torch.zeros(4)
    with pytest.raises(InplaceError, match="not being vmapped over"):
        vmap(lambda x: write(plain, x))(X)
    with pytest.raises(InplaceError, match="from outside the mapped function"):
        vmap(lambda t, x: write(t, x), in_dims=(None, 0))(plain, X)
    assert torch.equal(plain, torch.zeros(4))


def test_a_shared_write_to_a_shared_tensor_is_allowed_where_it_changes_nothing():
    plain = torch.tensor([2.0, float("nan")])
    vmap(lambda x: plain[:1].fill_(2.0) + x)(X)
    vmap(lambda x: plain.clamp_(max=3.0) + x[:1])(X)
    torch.testing.assert_close(plain, torch.tensor([2.0, float("nan")]), equal_nan=True)
    vmap(lambda x: plain.add_(1) + x[:1])(X[:1])  # one sample, one update
    assert plain[0] == 3.0


UPDATES = {
    "in place": lambda t: t.add_(1),
    "operator": lambda t: t.__imul__(2),
    "metadata": lambda t: t.t_(),
    "function": torch.neg_,
    "overwritten": lambda t: t.copy_(t * 0.9 + 1),
    "overwritten by a number": lambda t: t.copy_(2),
    "index": lambda t: t.__setitem__(0, t[1] + 5),
    "out=": lambda t: torch.mul(t, 2, out=t),
    "list": lambda t: torch._foreach_add_([t], 1),
}


@pytest.mark.parametrize("update", UPDATES)
def test_a_shared_update_of_a_shared_tensor_is_refused(update):
    """The loop would update it once for every sample, and the next sample would see it."""
    plain = torch.ones(2, 3)

    def f(x):
        UPDATES[update](plain)
        return x + plain.sum()

    with pytest.raises(InplaceError, match="once for every sample"):
        vmap(f)(X)
    assert torch.equal(plain, torch.ones(2, 3))
    with pytest.raises(InplaceError, match="once for every sample"):
        vmap(lambda x: vmap(lambda y: f(y) + x)(X))(X[:1])
    assert torch.equal(plain, torch.ones(2, 3))


def test_nested_levels_promote_both():
    def f(x):
        def g(y):
            out = torch.zeros(2)
            out[0] = y  # batched at the inner level
            out[1] = x[0]  # batched at the outer level
            return out

        return vmap(g)(x)

    expected = torch.stack([torch.stack([torch.stack([y, x[0]]) for y in x]) for x in X])
    assert torch.equal(vmap(f)(X), expected)


def test_an_outer_tensor_is_outside_for_the_inner_level():
    def f(x):
        out = torch.zeros(4)
        vmap(lambda y: out.add_(y))(x)
        return out

    with pytest.raises(InplaceError):
        vmap(f)(X)


def test_shape_and_dtype_errors_are_pytorchs():
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        vmap(lambda x: x.clone().add_(torch.ones(2, 4)))(X)
    with pytest.raises(RuntimeError, match="can't be cast to the desired output type"):
        vmap(lambda x: torch.zeros(4, dtype=torch.long).add_(x))(X)


@pytest.mark.parametrize("name", ["abs_", "arccos_", "arctan_", "copysign_", "xlogy_", "sin_", "mul_"])
def test_the_derivative_of_an_inplace_operation_on_what_it_overwrites(name):
    args = (0.5,) if name in ("copysign_", "xlogy_", "mul_") else ()

    def function(x):
        return getattr(x.clone(), name)(*args)

    assert check_rule(function, torch.rand(4) * 0.8 + 0.1)


@pytest.mark.parametrize("sizes", [(1, 2, 1), (2, 1), (1, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_written_to_itself(sizes, batch):
    def f(x):
        x.sub_(x, alpha=2)
        x.addcmul_(x.flatten(0, 0), x)
        return x.lerp_(x, 0.5)

    for order in itertools.permutations(range(len(sizes) + 1)):
        for dim in range(len(sizes) + 1):
            shape = (*sizes[:dim], batch, *sizes[dim:])
            x = torch.randn([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
            expected = torch.stack([f(row) for row in x.clone().unbind(dim)])
            torch.testing.assert_close(vmap(f, in_dims=dim)(x), expected)


def test_an_expanded_tensor_from_outside_gets_its_values_back():
    shared = torch.ones(2)
    with pytest.raises(InplaceError, match=r"shape \(3, 2\) from outside"):
        vmap(lambda x: shared.expand(3, 2).zero_() + x)(torch.ones(2))
    assert torch.equal(shared, torch.ones(2))


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z[0].unsqueeze_(0),
        lambda z: z[:1].squeeze_(0),
        lambda z: z.t_(),
        lambda z: z[0].unsqueeze_(0).transpose_(0, 1),
        lambda z: z.view(4).unsqueeze_(1),
    ],
)
@pytest.mark.parametrize("first", ["view", "base"])
def test_a_view_reshaped_in_place_stays_a_view(change, first):
    def f(x):
        z = torch.arange(4.0).reshape(2, 2)
        other = z[1:]
        v = change(z)
        (v if first == "view" else z).add_(x)
        return v * 1, other * 1, z * 1

    x = torch.ones(3, 1)
    expected = [torch.stack(parts) for parts in zip(*(f(row) for row in x), strict=True)]
    for got, wanted in zip(vmap(f)(x), expected, strict=True):
        assert torch.equal(got, wanted)


def test_out_is_not_differentiated():
    x = torch.randn(3, 2, requires_grad=True)
    for run in (
        vmap(lambda row: torch.add(row, 1, out=torch.zeros(2))),
        lambda x: torch.add(x, 1, out=torch.zeros(3, 2)),
    ):
        with pytest.raises(
            RuntimeError, match=r"add\(\): functions with out=... arguments don't support automatic diff"
        ):
            run(x)
        with torch.no_grad():
            assert torch.equal(run(x), x + 1)
