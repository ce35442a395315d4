"""``x[...]`` and ``x[...] = y`` against the Python loop: every expression, every choice of what is batched."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vmap_core
from vmap_core import DataDependentError, vmap

X = torch.arange(4 * 5 * 3 * 6.0).reshape(4, 5, 3, 6)
IDX, J = torch.randint(0, 3, (3, 2)), torch.randint(0, 3, (3, 2))
K = torch.tensor([2, 0, 1])


@pytest.fixture(autouse=True)
def no_fallback():
    with warnings.catch_warnings():
        warnings.simplefilter("error", vmap_core.FallbackWarning)
        yield


def loop(function, in_dims, args):
    rows = [[a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)] for i in range(3)]
    return torch.stack([function(*row) for row in rows])


def arguments(x_bdim, i_bdim, j_bdim, k_bdim):
    x = X if x_bdim is None else torch.stack([X + 100 * t for t in range(3)], x_bdim)
    i = IDX[0] if i_bdim is None else IDX if i_bdim == 0 else IDX.t()
    j = J[1] if j_bdim is None else J
    k = K[0] if k_bdim is None else K
    return (x_bdim, i_bdim, j_bdim, k_bdim), (x, i, j, k)


WAYS = [
    way
    for way in itertools.product((None, 0, 2, 4), (None, 0, 1), (None, 0), (None, 0))
    if any(d is not None for d in way)
]

READS = """x[i]|x[:,i]|x[i,j]|x[i,:,j]|x[:,i,j]|x[...,i]|x[k]|x[:,k]|x[k,i]|x[None,i,1:,None]|x[i,None,j]|x[0,i]|x[i,0]
x[i,0,j]|x[[0,1],j]|x[...,-1:,0]|x[True]|x[k,k,k]|x[1:3,i,...,1]|x[:,i,j][...,k]|x[M]|x[i[None],j[:,None]]|x[-1,...,i]
x[:,M5]|x[::2,None,k]|x[...]|x[()]|x[i>5]|x[i.tolist()] if i is I0 else x[i]""".replace("\n", "|").split("|")
NAMES = {
    "M": torch.tensor([True, False, True, False]),
    "M5": torch.tensor([True, False, True, False, True]),
    "I0": IDX[0],
    "torch": torch,
}


@pytest.mark.parametrize("expression", [r for r in READS if r != "x[i>5]"])
def test_read(expression):
    function = eval(f"lambda x, i, j, k: {expression}", NAMES)
    for way in WAYS:
        in_dims, args = arguments(*way)
        assert torch.equal(vmap(function, in_dims)(*args), loop(function, in_dims, args)), in_dims


WRITES = """y[0] = 1.|y[k] = 2.|y[:,k] = y[:,0]*2|y[i[0]] = 5|y[i] = 7.|y[:,i,0] = 3.|y[...,i[0]] = y[...,0]
y[i[:1],:,j[:1]] = y[:1,:,0]|y[y>0] = 0.|y[0] += 1|y[k] += k|y[:,0][1:] = 4|y[i[1],j[1]] = y[0,0]
y[1:3,::2] = torch.zeros(3,3,6)|y[None,0] = 1|y[0,:,0] = k.float()|y[k] = k.float()|y[y.sum(-1)>0] = 1.5
y[i[0],None] = 1.|y[:,:,k] = 1|y[k,k] = torch.arange(6.)|y[M] = k.float()|y[..., 0] = y[..., 1]""".replace(
    "\n", "|"
).split("|")


@pytest.mark.parametrize("statement", WRITES)
def test_write(statement):
    code = compile(statement, "<write>", "exec")

    def function(x, i, j, k):
        y = x.clone()
        exec(code, {**NAMES, "y": y, "i": i, "j": j, "k": k})
        return y

    for way in WAYS:
        in_dims, args = arguments(*way)
        assert torch.equal(vmap(function, in_dims)(*args), loop(function, in_dims, args)), in_dims


def test_gradients():
    x, w = torch.randn(3, 5, 4), torch.randn(3, 2, 4)
    i = torch.tensor([[0, 0], [1, 4], [2, 2]])

    def function(x, w, i):
        y = x * 1
        y[i[:1]] = w[:1] * 2
        return (x[i] * w).sum() + (y * y).sum()

    results = []
    for run in (vmap(function), lambda *a: loop(function, (0, 0, 0), a)):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        results.append(torch.autograd.grad(run(*leaves, i).sum(), leaves))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_batched_mask_cannot_be_read_through():
    with pytest.raises(DataDependentError, match=r"boolean mask.*torch\.where"):
        vmap(lambda x: x[x > 50])(X)


def test_plain_tensor_with_batched_index():
    table = torch.randn(7, 2)
    assert torch.equal(vmap(lambda i: table[i])(IDX), table[IDX])
    assert torch.equal(vmap(lambda k: table[k, 1:])(K), table[K, 1:])


@st.composite
def expressions(draw):
    """A shape, and an index expression of every kind of part, as text with names t0, t1... for index tensors."""
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    parts, tensors, ellipsis, dim = [], [], False, 0
    while dim < len(shape):
        kind = draw(st.sampled_from(["int", "slice", "tensor", "tensor", "none", "ellipsis", "stop", "list"]))
        if kind == "stop":
            break
        if kind == "none":
            parts.append("None")
        elif kind == "ellipsis":
            if not ellipsis and dim + 1 < len(shape):
                parts.append("...")
                ellipsis = True
                dim += draw(st.integers(0, len(shape) - dim - 1))
        else:
            n = shape[dim] if not ellipsis else min(shape)
            if kind == "int":
                parts.append(str(draw(st.integers(-n, n - 1))))
            elif kind == "slice":
                parts.append(draw(st.sampled_from([":", "1:", "::2", ":-1", "-2:"])))
            elif kind == "list":
                parts.append(str([draw(st.integers(0, n - 1))]))
            else:
                rank = draw(st.integers(0, 2))
                size = draw(st.sampled_from([(), (2,), (1, 2)])) if rank else ()
                batched = draw(st.booleans())
                full = ((3, *size) if batched else size) or (1,)
                values = torch.tensor(draw(st.lists(st.integers(-n, n - 1), min_size=6, max_size=6)))
                value = values[: torch.Size(full).numel()].reshape((3, *size) if batched else size)
                parts.append(f"t{len(tensors)}")
                tensors.append((value, 0 if batched else None))
            dim += 1
    return shape, parts, tensors, draw(st.integers(-1, len(shape))), draw(st.booleans())


@given(expressions())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_expression(case):
    shape, parts, tensors, bdim, write = case
    in_dims = (None if bdim < 0 else bdim, *(d for _, d in tensors))
    if all(d is None for d in in_dims) or not parts:
        return
    full = list(shape)
    if bdim >= 0:
        full.insert(bdim, 3)
    x = torch.arange(float(torch.Size(full).numel())).reshape(full)
    names = ", ".join(f"t{k}" for k in range(len(tensors)))
    text = f"[{', '.join(parts)}]"

    def function(x, *values):
        scope = {"x": x.clone(), **{f"t{k}": v for k, v in enumerate(values)}}
        if not write:
            return eval(f"x{text}", scope)
        exec(f"x{text} = -1.0", scope)
        return scope["x"]

    args = (x, *(t for t, _ in tensors))
    try:
        expected = loop(function, in_dims, args)
    except (IndexError, RuntimeError):
        with pytest.raises((IndexError, RuntimeError)):
            vmap(function, in_dims)(*args)
        return
    assert torch.equal(vmap(function, in_dims)(*args), expected), (text, names, in_dims)


def test_assignment_through_a_mask_of_the_outer_level_to_a_tensor_made_inside():
    def function(y, x):
        out = x.clone()
        out[out <= 0] = float("nan")
        return out * y

    x, y = torch.randn(2, 4), torch.randn(3)
    got = vmap(vmap(function, in_dims=(0, None)), in_dims=(None, 0))(y, x)
    expected = torch.stack([torch.stack([function(b, a) for b in y]) for a in x])
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "write",
    [
        lambda y: y.__setitem__(y[:, 0].argmax(), torch.tensor([1, 2, 3])),
        lambda y: y.__setitem__((slice(None), y[0].argmax()), y.long().sum()),
        lambda y: y.__setitem__(torch.tensor([True, False, True, False]), y.long().sum()),
        lambda y: y.__setitem__((y[:, 0].argmax(), y[0].argmax()), y[:1, 0]),
        lambda y: y.__setitem__(y[:, 0].argmax(), y[:1]),
    ],
)
def test_setitem_casts_and_drops_leading_ones_as_pytorch_does(write, dim):
    def f(v):
        y = v.clone()
        write(y)
        return y

    x = torch.arange(36.0).reshape(3, 4, 3).sin() * 4
    expected = torch.stack([f(sample) for sample in x])
    assert torch.equal(vmap(f, in_dims=dim)(x.movedim(0, dim)), expected)


def test_setitem_refuses_another_dtype_through_an_index_tensor():
    with pytest.raises(RuntimeError, match="dtypes match"):
        vmap(lambda v: v.clone().__setitem__(torch.tensor([0, 2]), v.long().sum()))(torch.ones(2, 3))


MASKED = {
    "columns": lambda y, v: y.__setitem__((slice(None), v[0, :, 0] > 0), 0.0),
    "number after": lambda y, v: y.__setitem__((v[:, 1, 0] > 0, 0), 7.0),
    "number before, slice after": lambda y, v: y.__setitem__((-1, v[0, :, 1] > 0, slice(1, 3)), 7.0),
    "0-d tensor after": lambda y, v: y.__setitem__((slice(None), v[0, :, 0] > 0, torch.tensor(1)), 1),
    "ellipsis": lambda y, v: y.__setitem__((..., v[0, 0] > 0), v[:, :, :1]),
    "ellipsis, two dims": lambda y, v: y.__setitem__((..., v[0] > 0), v[:, :1, 0]),
    "new dim before": lambda y, v: y.__setitem__((None, v[:, 1, 0] > 0, slice(None)), v[0, 0]),
    "new dim after": lambda y, v: y.__setitem__((v[:, 1, 0] > 0, None, slice(None)), v[0, 0]),
    "all kinds": lambda y, v: y.__setitem__((0, None, v[1, :, 0] > 0, ..., 0), v[0, 0, 0]),
    "mask without dims": lambda y, v: y.__setitem__((slice(None), v[0, 0, 0] > 0, slice(0, 2)), 1.5),
    "one row for all hits": lambda y, v: y.__setitem__((slice(None), v[0, :, 0] > 0), v[:, :1]),
    "leading one": lambda y, v: y.__setitem__((v[:, 0, 0] > 0,), v[:1]),
    "integers": lambda y, v: y.__setitem__((slice(None), v[0, :, 0] > 0), torch.tensor(3)),
}


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("write", MASKED.values(), ids=MASKED)
def test_a_batched_mask_beside_other_parts(write, made):
    def f(v):
        y = torch.zeros(2, 4, 5) if made else v.clone()
        write(y, v)
        return y

    x = torch.arange(120.0).reshape(3, 2, 4, 5).sin()
    expected = torch.stack([f(sample) for sample in x])
    for dim in (0, 2):
        assert torch.equal(vmap(f, in_dims=dim)(x.movedim(0, dim)), expected)
    with pytest.raises(IndexError, match=r"mask \[2\] at index 0 does not match .* \[2, 4, 5\] at index 1"):
        vmap(lambda v: v.clone().__setitem__((slice(None), v[:, 0, 0] > 0), 1.0))(x)


@pytest.mark.parametrize("value", [300, -1, 1.5, 1e10, float("nan"), 2 + 1j, 1e300], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32, torch.complex64], ids=str)
def test_what_does_not_fit_is_refused_through_a_mask_as_in_pytorch(dtype, value):
    x, mask = torch.zeros(2, 3, dtype=dtype), torch.tensor([[True, False, True], [False, True, True]])
    double = torch.complex128 if isinstance(value, complex) else torch.float64
    numbers = (
        value,
        torch.tensor(value),
        torch.tensor([value], dtype=double),
        torch.tensor([value, value], dtype=double),
    )
    for number in numbers:

        def write(x, mask, number=number):
            x = x.clone()
            x[mask] = number
            return x

        try:
            expected = torch.stack([write(*sample) for sample in zip(x, mask, strict=True)])
        except RuntimeError:
            for in_dims in ((0, 0), (0, None), (None, 0)):
                with pytest.raises(RuntimeError):
                    vmap(write, in_dims)(*(a if d == 0 else a[0] for a, d in zip((x, mask), in_dims, strict=True)))
        else:
            assert torch.equal(vmap(write)(x, mask).nan_to_num(), expected.nan_to_num())
