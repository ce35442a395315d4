"""Autocast inside mapped functions and around them: dtypes, values and gradients are those of the loop."""

import contextlib
import gc
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import vmap_core
from vmap_core import capture, vmap

INDEX = torch.tensor([1, 2])


def low(x):
    """Return a tensor in the dtype of autocast."""
    return x.to(LOW[-1])


LOW = [torch.bfloat16]

# name: function of one sample, shapes of its arguments
CASES = {
    "matmul": (torch.matmul, [(4, 5), (5, 6)]),
    "matmul, vectors": (torch.matmul, [(5,), (5,)]),
    "matmul, a vector": (torch.matmul, [(4, 5), (5,)]),
    "dot": (torch.dot, [(5,), (5,)]),
    "inner": (torch.inner, [(4, 5), (3, 5)]),
    "outer": (torch.outer, [(4,), (5,)]),
    "mv": (torch.mv, [(4, 5), (5,)]),
    "bmm": (torch.bmm, [(2, 4, 5), (2, 5, 6)]),
    "addmm": (torch.addmm, [(4, 6), (4, 5), (5, 6)]),
    "addmv": (torch.addmv, [(4,), (4, 5), (5,)]),
    "addr": (torch.addr, [(4, 5), (4,), (5,)]),
    "baddbmm": (torch.baddbmm, [(2, 4, 6), (2, 4, 5), (2, 5, 6)]),
    "addbmm": (torch.addbmm, [(4, 6), (2, 4, 5), (2, 5, 6)]),
    "linear": (F.linear, [(4, 5), (6, 5), (6,)]),
    "linear, a vector": (F.linear, [(5,), (6, 5), (6,)]),
    "einsum": (lambda a, b: torch.einsum("ij,jk->ik", a, b), [(4, 5), (5, 6)]),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 1), [(4, 5), (5, 6)]),
    "double": (lambda a, b: a.double() @ b.double(), [(4, 5), (5, 6)]),
    "conv1d": (F.conv1d, [(2, 3, 7), (4, 3, 3), (4,)]),
    "conv2d": (F.conv2d, [(2, 3, 7, 7), (4, 3, 3, 3), (4,)]),
    "conv_transpose2d": (F.conv_transpose2d, [(2, 3, 5, 5), (3, 4, 3, 3), (4,)]),
    "attention": (F.scaled_dot_product_attention, [(2, 4, 8), (2, 4, 8), (2, 4, 8)]),
    "softmax": (lambda x: F.softmax(x, -1), [(4, 5)]),
    "softmax, 16 bits": (lambda x: F.softmax(low(x), -1), [(4, 5)]),
    "log_softmax": (lambda x: F.log_softmax(low(x), 0), [(4, 5)]),
    "sum": (lambda x: low(x).sum(0), [(4, 5)]),
    "sum of all": (lambda x: low(x).sum(), [(4, 5)]),
    "mean": (lambda x: low(x).mean(0), [(4, 5)]),
    "prod": (lambda x: low(x).prod(0), [(4, 5)]),
    "cumsum": (lambda x: low(x).cumsum(0), [(4, 5)]),
    "norm": (lambda x: low(x).norm(dim=0), [(4, 5)]),
    "exp": (lambda x: low(x).exp(), [(4, 5)]),
    "pow": (lambda x: low(x).abs().pow(2.5), [(4, 5)]),
    "add": (lambda x, y: low(x) + y, [(4, 5), (5,)]),
    "a scalar": (lambda x, y: low(x) * y, [(4, 5), ()]),
    "addcmul": (lambda x, y: torch.addcmul(x, low(x), y), [(4, 5), (4, 5)]),
    "cat": (lambda x, y: torch.cat([low(x), y]), [(4, 5), (2, 5)]),
    "stack": (lambda x, y: torch.stack([low(x), y]), [(4, 5), (4, 5)]),
    "layer_norm": (lambda x, w, b: F.layer_norm(low(x), (5,), w, b), [(4, 5), (5,), (5,)]),
    "group_norm": (lambda x, w, b: F.group_norm(low(x), 2, w, b), [(2, 4, 5), (4,), (4,)]),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), [(4, 5), (5,), (5,)]),
    "gelu": (lambda x: F.gelu(low(x)), [(4, 5)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(low(x), 2), [(2, 4, 4)]),
    "prelu": (lambda x, w: F.prelu(low(x), w), [(4, 5), (5,)]),
    "mse_loss": (lambda x, y: F.mse_loss(low(x), y), [(4, 5), (4, 5)]),
    "smooth_l1_loss": (lambda x, y: F.smooth_l1_loss(low(x), y), [(4, 5), (4, 5)]),
    "bce with logits": (lambda x, y: F.binary_cross_entropy_with_logits(low(x), low(y).sigmoid()), [(4,), (4,)]),
    "cosine_similarity": (lambda x, y: F.cosine_similarity(low(x), y), [(4, 5), (4, 5)]),
    "cdist": (lambda x, y: torch.cdist(low(x), low(y)), [(4, 5), (4, 5)]),
    "bilinear": (F.bilinear, [(4, 5), (4, 3), (2, 5, 3), (2,)]),
    "cross": (lambda x, y: torch.linalg.cross(low(x), low(y)), [(4, 3), (4, 3)]),
}
CPU_ONLY = {
    "grid_sample": (lambda x, g: F.grid_sample(low(x), g, align_corners=False), [(2, 3, 4, 4), (2, 3, 3, 2)]),
    "index_copy": (lambda x, y: x.index_copy(0, INDEX, y.float()), [(4, 5), (2, 5)]),
    "cross_entropy": (lambda x: F.cross_entropy(low(x), torch.tensor([1, 0, 2, 4])), [(4, 5)]),
    "solve": (lambda a, b: torch.linalg.solve(a + 9 * torch.eye(4), b), [(4, 4), (4,)]),
    "lstm cell": (lambda x, h, w, u: torch.lstm_cell(x, (h, h), w, u)[0], [(2, 5), (2, 4), (16, 5), (16, 4)]),
    "lstm": (
        lambda x, h, w, u, b: torch.lstm(x, (h, h), [w, u, b, b], True, 1, 0.0, False, False, False)[0],
        [(6, 2, 5), (1, 2, 4), (16, 5), (16, 4), (16,)],
    ),
    "multi-head attention": (
        lambda x, w, o: F.multi_head_attention_forward(
            x, x, x, 8, 2, w, None, None, None, False, 0.0, o, None, need_weights=False
        )[0],
        [(4, 2, 8), (24, 8), (8, 8)],
    ),
}
ALL = {**CASES, **CPU_ONLY}


def autocast(enabled=True):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def inside(f):
    def g(*args):
        with autocast():
            return f(*args)

    return g


def close(ours, theirs, name=""):
    """16-bit roundings differ with the order of sums: as a whole, results agree."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
    ours, theirs = ours.double(), theirs.double()
    assert (ours - theirs).norm() <= 0.03 * theirs.norm() + 1e-3, name


@pytest.fixture(autouse=True)
def loops_are_fine():
    with vmap_core.fallback_policy("silent"):
        yield


@pytest.mark.parametrize("place", ["inside", "around"])
@pytest.mark.parametrize("name", ALL)
def test_equal_to_the_loop(name, place):
    f, shapes = ALL[name]
    f, around = (inside(f), contextlib.nullcontext) if place == "inside" else (f, autocast)
    for shared in (None, *range(len(shapes))) if len(shapes) > 1 else (None,):
        dims = [None if i == shared else (0, -1)[i % 2] for i in range(len(shapes))]
        args = [
            torch.randn(s if d is None else (3, *s) if d == 0 else (*s, 3), requires_grad=True)
            for s, d in zip(shapes, dims, strict=True)
        ]
        rows = [
            [a if d is None else a.select(d, i).contiguous() for a, d in zip(args, dims, strict=True)] for i in range(3)
        ]
        with around():
            wanted = torch.stack([f(*row) for row in rows])
            out = vmap(f, in_dims=tuple(dims))(*args)
        close(out, wanted, dims)
        seed = torch.randn_like(wanted)
        theirs = torch.autograd.grad(wanted, args, seed, allow_unused=True)
        for ours, grad in zip(torch.autograd.grad(out, args, seed, allow_unused=True), theirs, strict=True):
            assert (ours is None) == (grad is None)
            if grad is not None:
                close(ours, grad, dims)


@pytest.mark.parametrize("name", ALL)
def test_nested(name):
    f, shapes = ALL[name]
    args = [torch.randn(2, 3, *s) for s in shapes]
    with autocast():
        wanted = torch.stack([torch.stack([f(*(a[i, j] for a in args)) for j in range(3)]) for i in range(2)])
        close(vmap(vmap(f))(*args), wanted)
    close(vmap(inside(vmap(f)))(*args), wanted)
    close(vmap(vmap(inside(f)))(*args), wanted)


@pytest.mark.parametrize("place", ["inside", "around"])
@pytest.mark.parametrize("name", ALL)
def test_captured(name, place):
    """A program repeats each operation in the state that it was recorded in."""
    f, shapes = ALL[name]
    f, around = (inside(f), contextlib.nullcontext) if place == "inside" else (f, autocast)
    args = [torch.randn(3, *s) for s in shapes]
    with around():
        program = capture(vmap(f), *args)
        other = [torch.randn(3, *s) for s in shapes]
        close(program(*other), vmap(f)(*other))
        assert torch.is_autocast_enabled("cpu") == (place == "around")


@contextlib.contextmanager
def autocast_on_cuda(dtype):
    """``torch.autocast("cuda")`` where there is no GPU; the fake tensors are on one."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    LOW.append(dtype)
    try:
        yield
    finally:
        LOW.pop()
        torch.set_autocast_enabled("cuda", False)


# PyTorch without CUDA cannot index fake tensors on a GPU, which these do on the way.
NOT_FAKE = {"addr", "matmul, vectors", "a scalar"}


@pytest.mark.parametrize("name", [n for n in CASES if n not in NOT_FAKE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_on_cuda(name, dtype):
    f, shapes = CASES[name]
    with FakeTensorMode(), autocast_on_cuda(dtype):
        wanted = f(*(torch.empty(s, device="cuda") for s in shapes))
        for _ in range(2):  # the second time by what the first one has learnt
            out = vmap(f)(*(torch.empty(3, *s, device="cuda") for s in shapes))
            assert (out.dtype, out.shape) == (wanted.dtype, (3, *wanted.shape))


@pytest.mark.parametrize("name", ["matmul", "linear", "softmax, 16 bits", "sum", "add", "conv2d"])
def test_dtypes_on_cuda_at_any_depth(name):
    f, shapes = CASES[name]

    def inner(*args):
        with autocast_on_cuda(torch.float16):
            return f(*args)

    with FakeTensorMode():
        wanted = inner(*(torch.empty(s, device="cuda") for s in shapes))
        args = [torch.empty(2, *s[:1], 3, *s[1:], device="cuda") for s in shapes]
        out = vmap(vmap(inner, in_dims=1))(*args)
        assert (out.dtype, out.shape) == (wanted.dtype, (2, 3, *wanted.shape))
        one = torch.empty(3, *shapes[0], device="cuda")
        rest = [torch.empty(s, device="cuda") for s in shapes[1:]]
        out = vmap(inner, in_dims=(0, *[None] * len(rest)))(one, *rest)
        assert (out.dtype, out.shape) == (wanted.dtype, (3, *wanted.shape))
    assert not torch.is_autocast_enabled("cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("place", ["inside", "around"])
def test_values_on_cuda(name, place):
    f, shapes = CASES[name]
    args = [torch.randn(3, *s, device="cuda") for s in shapes]

    def run(mapped):
        with torch.autocast("cuda", torch.float16):
            return mapped(*args)

    def inner(*args):
        with torch.autocast("cuda", torch.float16):
            return f(*args)

    LOW.append(torch.float16)
    try:
        out = run(vmap(f)) if place == "around" else vmap(inner)(*args)
        wanted = run(lambda *args: torch.stack([f(*row) for row in zip(*args, strict=True)]))
    finally:
        LOW.pop()
    assert out.dtype == wanted.dtype
    torch.testing.assert_close(out, wanted, rtol=1e-2, atol=1e-2)


def test_switched_off_inside():
    x, w = torch.randn(3, 4, 5), torch.randn(5, 6)

    def f(x):
        low = x @ w
        with autocast(enabled=False):
            full = x @ w
        return low, full, x @ w

    with autocast():
        low, full, again = vmap(f)(x)
    assert low.dtype == again.dtype == torch.bfloat16
    assert torch.equal(full, x @ w) and torch.equal(low, again)
    assert vmap(torch.mm)(x, x.mT).dtype == torch.float32


def test_per_sample_gradients():
    """Weights that all samples share are cast once, and used unexpanded, but have a gradient for each sample."""
    w, v, x = torch.randn(8, 5), torch.randn(2, 8), torch.randn(3, 5)

    def grads(x):
        a, b = (p.detach().requires_grad_() for p in (w, v))
        with autocast():
            out = F.linear(F.relu(F.linear(x, a)), b)
        return torch.autograd.grad(out.float().square().sum(), (a, b), create_graph=True)

    for ours, theirs in zip(vmap(grads)(x), zip(*map(grads, x), strict=True), strict=True):
        close(ours, torch.stack(theirs))


def test_backward_hooks_find_the_state():
    """What runs with a backward pass runs in the state of that time."""
    seen = []

    def f(x):
        y = x * 1.0
        y.register_hook(lambda g: seen.append((g[None] @ g[:, None]).dtype))
        return y.sum()

    x = torch.randn(3, 4, requires_grad=True)
    out = vmap(f)(x)
    with autocast():
        out.sum().backward(retain_graph=True)
    out.sum().backward()
    assert seen == [torch.bfloat16, torch.float32]


def test_nothing_is_kept_alive():
    """PyTorch caches the casts of weights until autocast ends; the mapped tensors are none."""
    x = torch.randn(3, 4, 5, requires_grad=True)
    gone = []
    with autocast():
        y = x * 1.0
        weakref.finalize(y, gone.append, True)
        vmap(lambda y: torch.einsum("ij,ij->", y, y) + (y @ y.mT).sum())(y)
        del y
        gc.collect()
        assert gone
