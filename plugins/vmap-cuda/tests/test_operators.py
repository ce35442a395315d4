"""Operators that exist only on CUDA: by value with stand-ins on a CPU, by shape on fake tensors, for real on a GPU."""

import warnings
from collections import Counter
from functools import partial

import pytest
import torch
from cuda_attention import DROPOUT
from cuda_cases import CASES
from cuda_standins import install
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmap_core import FallbackWarning, vmap
from vmap_core.testing import batched, check_rule, choices, loop, mapped, nested_choices


@pytest.fixture(scope="module", autouse=True)
def standins():
    library = install()
    yield
    library._destroy()


def random_on(device, dtype):
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.double).to(device, dtype)


class Count(TorchDispatchMode):
    """Counts operators."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func] += 1
        return func(*args, **(kwargs or {}))


def tensors_of(run):
    return lambda *sample: [x for x in tree_leaves(run(*sample)) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("name", CASES)
def test_by_value(name):
    case = CASES[name]
    tensors = case.make(random_on("cpu", case.cpu_dtype))
    check_rule(case.run, *tensors, gradients=case.gradients, fallback=True)


@pytest.mark.parametrize("name", CASES)
def test_one_call_serves_all_samples(name):
    """In whatever place the batch dim is, and whichever arguments have one; else there is a warning."""
    case = CASES[name]
    tensors = case.make(random_on("cpu", case.cpu_dtype))
    for dims in choices([t.ndim for t in tensors]):
        physical = batched(tensors, [dims], (3,), "equal")
        one_call = case.one_call(dims)
        with warnings.catch_warnings(record=True) as caught, Count() as count:
            warnings.simplefilter("always", FallbackWarning)
            vmap(case.run, in_dims=dims)(*physical)
        calls = [count.seen[op] for op in case.ops]
        assert (calls == [1] * len(calls) and not caught) if one_call else max(calls, default=3) == 3, (dims, calls)


@pytest.mark.filterwarnings("ignore::vmap_core.FallbackWarning")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.gradients])
def test_rows_of_a_jacobian(name):
    """Through the autograd engine: the forward call is one of one sample, the vectors are batched."""
    case = CASES[name]
    leaves = [t.requires_grad_(t.dtype.is_floating_point) for t in case.make(random_on("cpu", case.cpu_dtype))]
    wanted = [t for t in leaves if t.requires_grad]
    out = next(o for o in tree_leaves(case.run(*leaves)) if o.requires_grad)
    rows = torch.randn(3, *out.shape, dtype=out.dtype)
    backward = partial(torch.autograd.grad, out, wanted, retain_graph=True)
    for got, *expected in zip(vmap(lambda row: backward(row))(rows), *map(backward, rows), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.shapes])
def test_shapes_on_fake_cuda_tensors(name):
    """The same, where PyTorch has shape functions, on tensors that say they are on a GPU."""
    case = CASES[name]
    like = case.make(random_on("cpu", case.dtype))
    run = tensors_of(case.run)
    ranks = [t.ndim for t in like]
    plans = [([dims], (3,)) for dims in choices(ranks)] + [(levels, (3, 2)) for levels in nested_choices(ranks)]
    for levels, sizes in plans:
        shapes = [t.shape for t in batched(like, levels, sizes, "equal")]
        with FakeTensorMode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            physical = [torch.empty(s, dtype=t.dtype, device="cuda") for s, t in zip(shapes, like, strict=True)]
            expected = loop(run, physical, levels)
            with Count() as count:
                got = mapped(vmap, run, physical, levels)
        told = [[(o.shape, o.dtype, o.device) for o in outs] for outs in (got, expected)]
        assert told[0] == told[1], (levels, told)
        if len(levels) == 1 and case.one_call(levels[0]):
            assert all(count.seen[op] == 1 for op in case.ops), (levels, count.seen)


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout(name):
    """Seeds go back to the backward call as they have to: the stand-ins check that it makes the same numbers."""
    case = DROPOUT[name]
    tensors = [torch.ones_like(t) for t in case.make(random_on("cpu", torch.double))]
    options = {"gradients": False, "batch_sizes": (3,)}
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(case.run)(*(t.expand(3, *t.shape) for t in tensors))
    check_rule(case.run, *tensors, randomness="different", **options)
    varied = case.make(random_on("cpu", torch.double))
    check_rule(case.run, *varied, randomness="same", **options)
    with Count() as count:
        vmap(case.run, randomness="different")(*(t.expand(3, *t.shape) for t in tensors))
    assert all(count.seen[op] == 1 for op in case.ops)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.on_gpu])
def test_on_a_gpu(name):
    case = CASES[name]
    tensors = case.make(random_on("cuda", case.dtype))
    check_rule(case.run, *tensors, gradients=case.gradients, fallback=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_on_a_gpu(name):
    case = DROPOUT[name]
    tensors = case.make(random_on("cuda", case.dtype))
    for randomness in ("different", "same"):
        given = [torch.ones_like(t) for t in tensors] if randomness == "different" else tensors
        check_rule(case.run, *given, randomness=randomness, gradients=False, batch_sizes=(3,))
