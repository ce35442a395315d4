"""Triton kernels under vmap, beside the loop over the samples: compiled on a GPU, else by Triton's interpreter."""

import os
import subprocess
import sys

import numpy
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install vmap-cuda[triton]")
import triton.language as tl  # noqa: E402

import vmap_cuda  # noqa: E402
from vmap_core import FallbackWarning, InplaceError, UnsupportedError, capture, vmap  # noqa: E402
from vmap_core.extend import RulePack, register, unregister  # noqa: E402
from vmap_cuda import triton_rule  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def version(module):
    return tuple(map(int, module.__version__.split(".")[:2]))


needs_loops = pytest.mark.skipif(
    DEVICE == "cpu" and version(triton) < (3, 7) and version(numpy) >= (2, 4),
    reason="Triton's interpreter before 3.7 makes numbers of arrays with one element, which NumPy refuses since 2.4",
)


def randn(*shape):
    return torch.randn(*shape, device=DEVICE)


@triton_rule
@triton.jit
def scale_kernel(x, out, factor, n, BLOCK: tl.constexpr = 4):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) * factor, mask=at < n)


def scale(x):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    scale_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x.contiguous(), out, 3.0, x.numel(), BLOCK=4)
    return out


@triton.jit
def offset(x, i, n):
    return x + (i * tl.num_programs(1) + tl.program_id(1)) * n


@triton.jit
def own_row(x, n):
    return offset(x, tl.program_id(axis=0) + tl.num_programs(0) * tl.program_id(2), n)


@triton_rule
@triton.jit
def three_axes_kernel(x, out, n: tl.constexpr):
    at = tl.arange(0, n)
    source = own_row(x, n)
    tl.store(own_row(out, n) + at, tl.load(source + at) + tl.program_id(0) + 10 * tl.program_id(1) + tl.num_programs(0))


def three_axes(x):  # (2 a, b, 4): grid (a, b, 2)
    out = torch.zeros_like(x)
    three_axes_kernel[(len(x) // 2, x.shape[1], 2)](x, out, 4)
    return out


@triton_rule
@triton.jit
def strided_sum_kernel(x, out, rows, n, step):
    """Each program sums rows, as many programs apart as there are."""
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        total = 0.0
        for i in range(0, n):
            total += tl.load(x + row * step + i)
        tl.store(out + row, total)


def strided_sum(x):
    out = x.new_zeros(len(x))
    strided_sum_kernel[2,](x, out, len(x), x.shape[1], x.stride(0))
    return out


@triton_rule
@triton.jit
def histogram_kernel(index, counts):
    tl.atomic_add(counts + tl.load(index + tl.program_id(0)), 1)


def histogram(index):
    counts = torch.zeros(5, dtype=torch.int32, device=index.device)
    view = counts[:4]  # what is written through it shows in the tensor it views
    histogram_kernel[(len(index),)](index, view)
    return counts


@triton_rule
@triton.jit
def increment_kernel(x, by):
    tl.store(x + tl.program_id(0), tl.load(x + tl.program_id(0)) + tl.load(by))


def increment(x):
    x = x * 1.0
    increment_kernel[(len(x),)](x, torch.ones((), device=x.device))
    return x


@triton_rule
@triton.autotune(configs=[triton.Config({"BLOCK": 4})], key=["n"])
@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def tuned_kernel(x, out, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        tl.store(out + at, tl.load(x + at) + 1)
    else:
        tl.store(out + at, tl.load(x + at, mask=at < n) + 2, mask=at < n)


def tuned(x):
    out = torch.empty_like(x)
    tuned_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, out, x.numel())
    return out


SAMPLES = {
    "elementwise": (scale, lambda *b: randn(*b, 7)),
    "three axes and helpers": (three_axes, lambda *b: randn(*b, 6, 2, 4)),
    "programs in strides": (strided_sum, lambda *b: randn(*b, 5, 3)),
    "atomics into a view": (histogram, lambda *b: torch.randint(0, 4, (*b, 6), device=DEVICE)),
    "in place": (increment, lambda *b: randn(*b, 4)),
    "autotune, even": (tuned, lambda *b: randn(*b, 8)),
    "autotune and heuristics, odd": (tuned, lambda *b: randn(*b, 5)),
}


NAMES = [pytest.param(name, marks=needs_loops if f is strided_sum else ()) for name, (f, _) in SAMPLES.items()]


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_loop(name, size):
    f, make = SAMPLES[name]
    x = make(size)
    out = vmap(f)(x)
    if not size:
        assert out.shape == (0, *f(make()).shape)
        return
    torch.testing.assert_close(out, torch.stack([f(row) for row in x]), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_nested(name):
    f, make = SAMPLES[name]
    x = make(2, 1, 3)
    wanted = torch.stack([f(row) for row in x.flatten(0, 2)]).unflatten(0, (2, 1, 3))
    torch.testing.assert_close(vmap(vmap(vmap(f)))(x), wanted, rtol=0, atol=0)
    y = x.movedim(2, 0).contiguous()
    torch.testing.assert_close(vmap(vmap(vmap(f), in_dims=1), in_dims=1, out_dims=2)(y), wanted.movedim(0, 2))


def test_operands_batched_at_different_levels():
    @triton_rule
    @triton.jit
    def outer_kernel(x, y, out, n: tl.constexpr):
        at = tl.arange(0, n)
        tl.store(out + at, tl.load(x + at) * tl.load(y + at))

    def f(x, y):
        out = torch.empty_like(x)
        outer_kernel[1,](x, y, out, 4)
        return out

    x, y = randn(2, 4), randn(3, 4)
    out = vmap(vmap(f, in_dims=(None, 0)), in_dims=(0, None))(x, y)
    torch.testing.assert_close(out, x[:, None] * y)
    out = vmap(vmap(f, in_dims=(0, None)), in_dims=(None, 0))(x, y)
    torch.testing.assert_close(out, x * y[:, None])


def test_unbatched_launches_run_once():
    x, launches = randn(4), []

    def grid(meta):
        launches.append(meta)
        return (1,)

    def f(y):
        out = torch.empty_like(x)
        scale_kernel[grid](x, out, 2.0, 4, BLOCK=4)
        return out + y

    y = randn(3)
    torch.testing.assert_close(vmap(f)(y), 2 * x + y[:, None])
    assert len(launches) == 1


def test_outside_vmap_it_is_the_kernel():
    x = randn(6)
    torch.testing.assert_close(scale(x), 3 * x)
    assert scale_kernel.arg_names[0] == "x"
    assert repr(scale_kernel) == "triton_rule(scale_kernel)"


def test_mapped_inputs_are_written_to_as_in_the_loop():
    x = randn(3, 4)
    before = x.clone()
    vmap(lambda row, by: increment_kernel[(4,)](row, by))(x, randn(3).fill_(2))
    torch.testing.assert_close(x, before + 2)


@pytest.mark.parametrize(
    "kernel, wanted",
    [
        (scale_kernel, {"out"}),
        (three_axes_kernel, {"out"}),
        (histogram_kernel, {"counts"}),
        (increment_kernel, {"x"}),
        (tuned_kernel, {"out"}),
        (strided_sum_kernel, {"out"}),
    ],
    ids=repr,
)
def test_what_is_written_is_read_from_the_source(kernel, wanted):
    tensors = {"x", "out", "counts", "index", "by"}
    assert kernel.mutates_args & tensors == wanted


def test_addresses_through_helpers_loops_and_descriptors():
    @triton.jit
    def put(where, value):
        tl.store(where, value)

    @triton.jit
    def kernel(a, b, c, d, e, n):
        for i in range(n):
            put(moving, tl.load(b + i))  # noqa: F821  # assigned below, as in a loop's second round
            moving = a + i  # noqa: F841
        block = tl.make_block_ptr(c, (n,), (1,), (0,), (4,), (0,))
        block = tl.advance(block, (4,))
        tl.store(block, 1.0)
        descriptor = tl.make_tensor_descriptor(d, [n], [1], [4])
        descriptor.store([0], descriptor.load([0]))
        tl.load(e + tl.load(b))

    assert triton_rule(kernel).mutates_args & set("abcde") == set("acd")


def test_errors():
    x, shared = randn(3, 4), randn(4)
    with pytest.raises(InplaceError, match="scale_kernel"):
        vmap(lambda row: scale_kernel[1,](row, shared, 1.0, 4))(x)
    with pytest.raises(InplaceError, match="changes a tensor"):
        vmap(lambda row: increment_kernel[4,](shared, torch.ones((), device=DEVICE)))(x)
    with pytest.raises(InplaceError, match="other samples see"):
        vmap(lambda row: increment_kernel[4,](row, row.sum()))(shared.expand(3, 4))
    with pytest.raises(UnsupportedError, match=r"x\.contiguous\(\).*strided_args=\['x'\]"):
        vmap(lambda row: scale_kernel[1,](row, torch.empty_like(shared), 1.0, 4), in_dims=1)(x.t().contiguous())
    with pytest.raises(UnsupportedError, match="tuple"):
        vmap(lambda row: scale_kernel[1,]((row, row), torch.empty_like(shared), 1.0, 4))(x)
    with pytest.raises(UnsupportedError, match="chunk_size"):
        vmap(lambda row: scale_kernel[2**30,](row, torch.empty_like(shared), 1.0, 4))(x)
    with pytest.raises(ValueError, match="no parameters"):
        triton_rule(scale_kernel.kernel, mutates_args=["y"])


@needs_loops
def test_strided_samples():
    kernel = triton_rule(strided_sum_kernel.kernel, strided_args=["x"])

    def f(x):
        out = x.new_zeros(len(x))
        kernel[2,](x, out, len(x), x.shape[1], x.stride(0))
        return out

    x = randn(3, 4, 6)[:, :, :5]
    with pytest.raises(UnsupportedError, match="strided_args"):
        vmap(strided_sum)(x)
    torch.testing.assert_close(vmap(f)(x), x.sum(2))


def test_captured_programs_repeat_launches():
    x = randn(3, 7)
    program = capture(vmap(scale), x)
    y = randn(3, 7)
    torch.testing.assert_close(program(y), 3 * y)
    assert "launch" in str(program)
    torch.testing.assert_close(program(x), 3 * x)


def test_autograd_knows_what_is_written():
    x, w = randn(3, 4), randn(4).requires_grad_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        vmap(lambda row: _squared_then_written(row, w))(x).sum().backward()


def _squared_then_written(row, w):
    y = row * 1.0
    out = y * w
    increment_kernel[(4,)](y, torch.ones((), device=DEVICE))
    return out


@torch.library.custom_op("vmap_cuda_tests::scale", mutates_args=())
def scale_op(x: torch.Tensor) -> torch.Tensor:
    return scale(x)


@pytest.mark.cuda
def test_cuda_graphs_repeat_launches():
    for f, make in SAMPLES.values():
        x, y = make(3), make(3)
        step = vmap_cuda.graph(vmap(f), x)
        torch.testing.assert_close(step(y), vmap(f)(y), rtol=0, atol=0)
        torch.testing.assert_close(step(x), vmap(f)(x), rtol=0, atol=0)


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return scale(x)

    @staticmethod
    def backward(ctx, grad):
        return scale(grad)


def test_custom_operators_around_kernels():
    x = randn(2, 3, 4).requires_grad_()
    with pytest.warns(FallbackWarning, match="scale"):  # they hide the launch
        torch.testing.assert_close(vmap(scale_op)(x[0].detach()), 3 * x[0])
    own = RulePack("vmap_cuda_tests")
    own.composite(scale_op)(Scale.apply)  # says what they do
    register(own)
    try:
        out = vmap(vmap(scale_op), in_dims=1, out_dims=1)(x)
    finally:
        unregister("vmap_cuda_tests")
    torch.testing.assert_close(out, 3 * x)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], torch.full_like(x, 3))


COMPILE = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
import test_rmsnorm, test_triton_kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from vmap_cuda._triton_source import batched, jitted

for kernel, types, constants in [
    (test_triton_kernels.three_axes_kernel, {"x": "*fp32", "out": "*fp32"}, {"n": 4}),
    (test_triton_kernels.histogram_kernel, {"index": "*i64", "counts": "*i32"}, {}),
    (test_rmsnorm.forward_kernel, {n: "*fp32" for n in ("x", "weight", "out", "scale")} | {"eps": "fp32"}, {"BLOCK": 8}),
]:
    for levels in (1, 2):
        made = batched(jitted(kernel.kernel), tuple(n for n in types if n != "eps"), levels)
        names = {n: types.get(n, "constexpr" if n in constants else "i64") for n in made.arg_names}
        assert compile(ASTSource(made, names, constants), target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_batched_kernels_compile_for_a_gpu():
    """No GPU is needed to compile for one, only a process without the interpreter."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = [sys.executable, "-W", "ignore", "-c", COMPILE, os.path.dirname(__file__)]
    run = subprocess.run(script, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
