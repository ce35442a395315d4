"""Functions in Python with a batching rule of their own."""

import pytest
import torch

from vmap_core import DataDependentError, RandomnessError, UnsupportedError, custom_vmap, sequential_vmap, vmap

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))  # rows of both signs


def make():
    seen = []

    @custom_vmap
    def f(x, options, *, scale=1.0):
        """Multiply."""
        return {"out": x * options["by"] * scale, "sum": x.sum()}

    @f.def_vmap
    def rule(info, in_dims, x, options, *, scale=1.0):
        seen.append((info.batch_size, in_dims))
        x = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(info.batch_size, *x.shape)
        by = options["by"]
        by = by.movedim(in_dims[1]["by"], 0).unsqueeze(1) if in_dims[1]["by"] is not None else by
        return {"out": x * by * scale, "sum": x.sum(1)}, {"out": 0, "sum": 0}

    return f, seen


def test_the_rule_is_used_where_something_is_batched():
    f, seen = make()
    assert f.__doc__ == "Multiply."
    f(X[0], {"by": torch.tensor(2.0)})
    vmap(lambda x: x + f(X[0], {"by": torch.tensor(2.0)})["out"])(X)
    assert not seen
    out = vmap(lambda x: f(x, {"by": torch.tensor(2.0)}, scale=3.0), in_dims=1)(X.T)
    torch.testing.assert_close(out["out"], X * 6)
    torch.testing.assert_close(out["sum"], X.sum(1))
    out = vmap(lambda b: f(X[0], {"by": b}))(torch.arange(4.0))
    torch.testing.assert_close(out["out"], torch.arange(4.0)[:, None] * X[0])
    assert seen == [(4, (1, {"by": None}, {"scale": None})), (4, (None, {"by": 0}))]


def test_nested_and_batched_further_out_only():
    f, seen = make()
    by = torch.arange(2.0)
    out = vmap(lambda b: vmap(lambda x: f(x, {"by": b})["out"])(X))(by)
    torch.testing.assert_close(out, by[:, None, None] * X)
    assert [size for size, _ in seen] == [4]  # its own operations are mapped further out
    seen.clear()
    out = vmap(lambda b: vmap(lambda x: x + f(X[0], {"by": b})["out"])(X))(by)
    torch.testing.assert_close(out, X + (by[:, None] * X[0])[:, None])
    assert [size for size, _ in seen] == [2]


def test_gradients_inside_and_outside():
    f, _ = make()
    w = torch.tensor(2.0, requires_grad=True)
    (got,) = torch.autograd.grad(vmap(lambda x: f(x, {"by": w})["out"])(X).sum(), w)
    torch.testing.assert_close(got, X.sum())

    def gradient(x):
        leaf = w.detach().requires_grad_()
        return torch.autograd.grad(f(x, {"by": leaf})["out"].sum(), leaf)[0]

    torch.testing.assert_close(vmap(gradient)(X), X.sum(1))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        out = vmap(lambda x: f(x, {"by": torch.tensor(3.0)})["out"])(dual)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(out).tangent, torch.full_like(X, 3.0))


def test_without_a_rule_and_as_a_method():
    plain = custom_vmap(lambda x: x.sin())
    torch.testing.assert_close(vmap(plain)(X), X.sin())

    class Model:
        @sequential_vmap
        def run(self, x):
            return x * (2 if x.sum() > 0 else 3)

    torch.testing.assert_close(vmap(Model().run)(X), torch.stack([Model().run(x) for x in X]))


def test_out_dims_that_do_not_fit():
    f = custom_vmap(lambda x: (x, x))
    f.def_vmap(lambda info, in_dims, x: ((x, x), (0, 0, 0)))
    with pytest.raises(ValueError, match="out_dims"):
        vmap(f)(X)


def branches(x, power):
    if x.sum() > 0:
        return [x**power, int(power)]
    return [-x.clone(), int(power)]


def test_sequential_may_read_values():
    with pytest.raises(DataDependentError):
        vmap(lambda x: branches(x, 2)[0])(X)
    f = sequential_vmap(branches)
    got = vmap(lambda x: f(x, 2)[0])(X)
    torch.testing.assert_close(got, torch.stack([branches(x, 2)[0] for x in X]))
    nested = vmap(vmap(lambda x: f(x, 2)[0]), in_dims=1, out_dims=1)(X[:, None].expand(4, 2, 3))
    torch.testing.assert_close(nested, got[:, None].expand(4, 2, 3))
    assert vmap(lambda x: f(x, 2)[0])(X[:0]).shape == (0, 3)
    assert vmap(lambda x: f(x, power=torch.tensor(2.0))[0])(X).shape == (4, 3)
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(vmap(lambda x: f(x, 2)[0])(x).sum(), x)
    (expected,) = torch.autograd.grad(sum(branches(row, 2)[0].sum() for row in x), x)
    torch.testing.assert_close(grad, expected)


def test_sequential_outputs_that_cannot_be_stacked():
    with pytest.raises(UnsupportedError, match="different shapes"):
        vmap(sequential_vmap(lambda x: x[x > 0]))(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    with pytest.raises(UnsupportedError, match="differ"):
        vmap(sequential_vmap(lambda x: (x, float(x.sum()))), out_dims=(0, None))(X)


def test_sequential_randomness():
    f = sequential_vmap(lambda x: x + torch.rand(3))
    same = vmap(f, randomness="same")(torch.zeros(4, 3))
    assert len(same.unique(dim=0)) == 1
    torch.manual_seed(0)
    different = vmap(f, randomness="different")(torch.zeros(4, 3))
    torch.manual_seed(0)
    torch.testing.assert_close(different, torch.stack([torch.rand(3) for _ in range(4)]))
    with pytest.raises(RandomnessError):
        vmap(f)(torch.zeros(4, 3))
