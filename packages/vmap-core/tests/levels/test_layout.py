"""The layout invariant: what a program learns of memory is what the loop's would (see vmap_core.levels.layout)."""

import itertools

import pytest
import torch

from vmap_core import vmap
from vmap_core.errors import RuleError
from vmap_core.extend import RulePack
from vmap_core.rulekit.packs import current_table, table_in_force
from vmap_core.rulekit.rule import Table

W = torch.randn(4, 4)
INDEX = torch.tensor([2, 0, 3, 1])

# Results whose samples lie between each other in memory, for one or another place of the batch dim.
MADE = {
    "sin": torch.sin,
    "product": lambda x: W @ x,
    "product from the right": lambda x: x @ W,
    "linear": lambda x: torch.nn.functional.linear(x, W, W[0]),
    "transposed": lambda x: (x * 2).T,
    "rows": lambda x: x.exp()[1:],
    "columns": lambda x: (x + 1)[:, ::2],
    "selected": lambda x: x.index_select(1, INDEX),
    "with a row": lambda x: x * x[0],
    "with a column": lambda x: x[:, :1] + x.cos(),
    "outer": lambda x: torch.outer(x[0], x[:, 1]),
    "solution": lambda x: torch.linalg.solve(W + 5 * torch.eye(4), x),
    "cumulated": lambda x: x.cumsum(0),
    "one dim": lambda x: x.sum(0),
    "scattered into a copy": lambda x: x.T.masked_scatter(torch.eye(4, dtype=torch.bool), x),
    "convolution": lambda x: torch.nn.functional.conv1d(x[:, None], W[:, :1, None])[0],
    "convolution by it": lambda x: torch.nn.functional.conv1d(W, x[..., None]),
    "kronecker product": lambda x: torch.kron(x[:2, :2], x[2:, 2:]),
    "repeated": lambda x: x.repeat_interleave(2, 0)[:, :2],
    "flat and repeated": lambda x: x.repeat_interleave(2).reshape(4, 8),
    "itself": lambda x: x,
    "a copy": torch.clone,
}


def asked(y):
    """Return a tensor with the answers to questions about memory."""
    return y * 1.0 if y.is_contiguous() else y - torch.tensor([float(s) for s in y.stride()]).sum()


def written(view):
    def f(y):
        y = y.clone() if y.is_leaf else y * 1
        part = view(y)
        part.reshape(-1)[:1] = 7.0
        y.mul_(3)
        part.add_(1)
        return y, part

    return f


# What is done with them.
USES = {
    "questions": asked,
    "view": lambda y: y.view(-1),
    "view of a copy": lambda y: y.clone().view(-1),
    "reshape": written(lambda y: y.reshape(-1)),
    "flatten": written(lambda y: y.flatten()),
    "ravel": written(lambda y: y.ravel()),
    "contiguous": written(lambda y: y.contiguous()),
    "transposed and back": written(lambda y: y.unsqueeze(0).transpose(0, -1).contiguous()),
    "as_strided": lambda y: (y * 2).contiguous().as_strided((2, 2), (2, 1), 0),
    "as_strided of it": lambda y: (y * 2).as_strided((2, 2), (1, 1)),
    "as_strided written": lambda y: (z := y * 2, z.as_strided((2,), (1,)).zero_())[0],
    "complex": lambda y: torch.view_as_complex((y * 2).contiguous().reshape(-1, 2)),
    "other bytes": lambda y: (y * 0 + 1).contiguous().reshape(-1, 2).view(torch.float64),
    "unfolded": lambda y: y.unfold(0, 2, 1).reshape(-1),
    "expanded": lambda y: y.expand(2, *y.shape).reshape(2, -1),
}


def loop(f, x, dim):
    out = [f(s) for s in x.unbind(dim)]
    if not isinstance(out[0], tuple):
        return torch.stack(out)
    return tuple(map(torch.stack, zip(*out, strict=True)))


def same(f, g, x, dim):
    """Compare a mapped function with the loop: values, or that both refuse."""
    try:
        expected = loop(lambda s: f(g(s)), x, dim)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            vmap(lambda s: f(g(s)), in_dims=dim)(x)
        return
    torch.testing.assert_close(vmap(lambda s: f(g(s)), in_dims=dim)(x), expected, equal_nan=True)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("made", MADE)
def test_equals_the_loop(made, use):
    for dim in range(3):
        for size in (3, 1):
            shape = [4, 4]
            shape.insert(dim, size)
            same(USES[use], MADE[made], torch.randn(shape), dim)
    x = torch.randn(4, 3, 4).transpose(0, 2)  # the first dim is not the outermost
    same(USES[use], MADE[made], x, 1)
    same(USES[use], MADE[made], torch.randn(4, 4, 3).permute(2, 1, 0), 0)


@pytest.mark.parametrize("made", MADE)
def test_two_levels(made):
    f = MADE[made]
    for inner, outer in itertools.product((0, 1, 2), (0, 3)):
        shape = [4, 4]
        shape.insert(inner, 2)
        shape.insert(outer, 3)
        x = torch.randn(shape)
        for use in ("questions", "reshape", "contiguous", "as_strided"):
            g = lambda s, use=use: USES[use](f(s))  # noqa: E731
            got = vmap(vmap(g, in_dims=inner), in_dims=outer)(x)
            torch.testing.assert_close(got, loop(lambda r: loop(g, r, inner), x, outer))  # noqa: B023


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("made", MADE)
def test_gradients(made, dim):
    """Laid out anew, a tensor stays the one that gradients are asked for, whatever was computed from it before."""

    def f(x):
        y = MADE[made](x)
        before = (y * y).sum()
        flat = y.reshape(-1)
        after = (flat.sin() * torch.arange(flat.numel())).sum()
        (g,) = torch.autograd.grad(before + after, y, create_graph=True)
        return before + after + g.sum()

    x = torch.randn(4, 4, 4).requires_grad_()
    (got,) = torch.autograd.grad(vmap(f, in_dims=dim)(x).sum(), x)
    (expected,) = torch.autograd.grad(loop(f, x, dim).sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("made", MADE)
def test_gradients_through_a_write_to_a_view(made, dim):
    def f(x):
        y = MADE[made](x * 1)
        y.unsqueeze(-1).mul_(3)
        return (y * torch.arange(y.numel()).reshape(y.shape)).sum()

    x = torch.randn(4, 4, 4).requires_grad_()
    got, expected = vmap(f, in_dims=dim)(x).sum(), loop(f, x, dim).sum()
    if made in ("rows", "solution"):  # whose backward wants what is overwritten
        for total in (got, expected):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(total, x)
        return
    (got,), (expected,) = torch.autograd.grad(got, x), torch.autograd.grad(expected, x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_what_is_written_to_after_its_samples_were_laid_out():
    def f(index, x):
        y = x[index]
        z = y * 3
        y.reshape(-1)
        y.relu_()
        return y + z

    index = torch.tensor([[0, 1], [0, 0], [1, 0]])[..., None]
    x = torch.tensor([[-0.125, -0.25], [0.5, 0.125]], requires_grad=True)
    weights = torch.arange(12.0).reshape(3, 2, 1, 2)
    expected = torch.stack([f(i, x) for i in index])
    (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        laid_out = index.permute(order).contiguous().permute([order.index(d) for d in range(3)])
        for dim in range(3):
            out = vmap(f, in_dims=(dim, None))(laid_out.movedim(0, dim), x)
            assert torch.equal(out, expected)
            assert torch.equal(torch.autograd.grad((out * weights).sum(), x)[0], gradient)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_writes_to_views_of_an_input_reach_it(dim):
    def f(x):
        x.T[0].mul_(2)
        x.unsqueeze(0).transpose(0, 1)[1].add_(1)
        x.diagonal().zero_()
        return x.sum()

    a = torch.randn(4, 4, 4)
    b = a.clone()
    torch.testing.assert_close(vmap(f, in_dims=dim)(a), loop(f, b, dim))
    torch.testing.assert_close(a, b)


def test_a_promoted_tensor_keeps_its_layout():
    def f(x):
        y = torch.zeros(3, 4).T
        z = torch.zeros(4, 3).t().contiguous()
        y[0] = x[:3]
        z[0] = x
        return asked(y), asked(z), y.T.view(-1)

    x = torch.randn(5, 4)
    for got, expected in zip(vmap(f)(x), loop(f, x, 0), strict=True):
        torch.testing.assert_close(got, expected)


@torch.library.custom_op("test_layout::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.parametrize("dim", [0, 1])
def test_the_check_sees_what_breaks_it(dim):
    """A sample between the others with batch dim 0, for which the short cut of a signature does not look; a view for new."""
    pack = RulePack("test-layout")

    @pack.rule(twice._opoverload)
    def rule(info, in_dims, x):
        return (x.transpose(1, 2).contiguous().permute(2, 0, 1).sin(), 0) if dim == 0 else (x[...], 1)

    x = torch.randn(3, 3, 3)
    with table_in_force(Table([*current_table().packs, pack], checks=True)):
        with pytest.raises(RuleError, match="layout invariant"):
            vmap(twice, in_dims=dim)(x)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("shape", [(4, 2), (1, 2), (4, 1), (4, 3)])
@pytest.mark.parametrize(
    "index",
    [
        lambda x, i: x[i], lambda x, i: x[:, i], lambda x, i: x[..., i], lambda x, i: x[i, i], lambda x, i: x[None, i],
        lambda x, i: x[i, :, None], lambda x, i: x[i[:, None]], lambda x, i: x.t()[i], lambda x, i: x[None][:, i, 0],
    ],
)  # fmt: skip
def test_what_is_indexed_lies_as_in_the_loop(index, shape, dim):
    seen = []

    def f(x):
        v = index(x, torch.tensor([0, 0, -1]))
        seen.append([step for step, n in zip(v.stride(), v.shape, strict=True) if n > 1])
        v.ravel().mul_(-1)
        return v

    shape = list(shape)
    shape.insert(dim, 3)
    x = torch.randn(shape)
    expected = torch.stack([f(sample) for sample in x.unbind(dim)])
    strides = seen.pop()
    assert torch.equal(vmap(f, in_dims=dim)(x), expected) and seen.pop() == strides
