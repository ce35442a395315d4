"""What is checked of operators that exist only on CUDA: by value with stand-ins on a CPU, by shape on fake tensors, for
real on a GPU.
"""

import warnings
from collections import Counter
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmap_core import FallbackWarning, vmap
from vmap_core.testing import batched, check_rule, choices, loop, mapped, nested_choices

ON_GPU = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


class Seen(TorchDispatchMode):
    """Keeps the operators that run."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func)
        return func(*args, **(kwargs or {}))

    @property
    def counts(self):
        return Counter(self.ops)


def checks_of(cases):
    """Return a parameter for every check of every call of a table: the check, and the call."""
    checks = {
        by_value: lambda case: True,
        one_call_serves_all_samples: lambda case: True,
        rows_of_a_jacobian: lambda case: case.gradients,
        shapes_on_fake_cuda_tensors: lambda case: case.shapes,
        on_a_gpu: lambda case: case.on_gpu,
    }
    return [
        _parameter(check, name, case) for check, wants in checks.items() for name, case in cases.items() if wants(case)
    ]


def dropout_checks_of(cases):
    """Do it for calls that draw."""
    return [_parameter(check, name, case) for check in (dropout, dropout_on_a_gpu) for name, case in cases.items()]


def _parameter(check, name, case):
    marks = ON_GPU if check in (on_a_gpu, dropout_on_a_gpu) else []
    if check is rows_of_a_jacobian:
        marks = [pytest.mark.filterwarnings("ignore::vmap_core.FallbackWarning")]
    return pytest.param(check, case, id=f"{check.__name__}-{name}", marks=marks)


def _random_on(device, dtype):
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.double).to(device, dtype)


def _tensors_of(run):
    return lambda *sample: [x for x in tree_leaves(run(*sample)) if isinstance(x, torch.Tensor)]


def by_value(case):
    tensors = case.make(_random_on("cpu", case.cpu_dtype))
    check_rule(case.run, *tensors, gradients=case.gradients, fallback=True)


def one_call_serves_all_samples(case):
    """In whatever place the batch dim is, and whichever arguments have one; else there is a warning."""
    tensors = case.make(_random_on("cpu", case.cpu_dtype))
    for dims in choices([t.ndim for t in tensors]):
        physical = batched(tensors, [dims], (3,), "equal")
        one_call = case.one_call(dims)
        with warnings.catch_warnings(record=True) as caught, Seen() as seen:
            warnings.simplefilter("always", FallbackWarning)
            vmap(case.run, in_dims=dims)(*physical)
        calls = [seen.counts[op] for op in case.ops]
        assert (calls == [1] * len(calls) and not caught) if one_call else max(calls, default=3) == 3, (dims, calls)


def rows_of_a_jacobian(case):
    """Through the autograd engine: the forward call is one of one sample, the vectors are batched."""
    leaves = [t.requires_grad_(t.dtype.is_floating_point) for t in case.make(_random_on("cpu", case.cpu_dtype))]
    wanted = [t for t in leaves if t.requires_grad]
    out = next(o for o in tree_leaves(case.run(*leaves)) if o.requires_grad)
    rows = torch.randn(3, *out.shape, dtype=out.dtype)
    backward = partial(torch.autograd.grad, out, wanted, retain_graph=True)
    for got, *expected in zip(vmap(lambda row: backward(row))(rows), *map(backward, rows), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))


def shapes_on_fake_cuda_tensors(case):
    """The same, where PyTorch has shape functions, on tensors that say they are on a GPU."""
    like = case.make(_random_on("cpu", case.dtype))
    run = _tensors_of(case.run)
    ranks = [t.ndim for t in like]
    plans = [([dims], (3,)) for dims in choices(ranks)] + [(levels, (3, 2)) for levels in nested_choices(ranks)]
    for levels, sizes in plans:
        shapes = [t.shape for t in batched(like, levels, sizes, "equal")]
        with FakeTensorMode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            physical = [torch.empty(s, dtype=t.dtype, device="cuda") for s, t in zip(shapes, like, strict=True)]
            expected = loop(run, physical, levels)
            with Seen() as seen:
                got = mapped(vmap, run, physical, levels)
        told = [[(o.shape, o.dtype, o.device) for o in outs] for outs in (got, expected)]
        assert told[0] == told[1], (levels, told)
        if len(levels) == 1 and case.one_call(levels[0]):
            assert all(seen.counts[op] == 1 for op in case.ops), (levels, seen.counts)


def on_a_gpu(case):
    tensors = case.make(_random_on("cuda", case.dtype))
    check_rule(case.run, *tensors, gradients=case.gradients, fallback=True)


def dropout(case):
    """Seeds go back to the backward call as they have to: the stand-ins check that it makes the same numbers."""
    tensors = [torch.ones_like(t) for t in case.make(_random_on("cpu", torch.double))]
    options = {"gradients": False, "batch_sizes": (3,)}
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(case.run)(*(t.expand(3, *t.shape) for t in tensors))
    check_rule(case.run, *tensors, randomness="different", **options)
    varied = case.make(_random_on("cpu", torch.double))
    check_rule(case.run, *varied, randomness="same", **options)
    with Seen() as seen:
        vmap(case.run, randomness="different")(*(t.expand(3, *t.shape) for t in tensors))
    assert all(seen.counts[op] == 1 for op in case.ops)


def dropout_on_a_gpu(case):
    tensors = case.make(_random_on("cuda", case.dtype))
    for randomness in ("different", "same"):
        given = [torch.ones_like(t) for t in tensors] if randomness == "different" else tensors
        check_rule(case.run, *given, randomness=randomness, gradients=False, batch_sizes=(3,))
