"""CUDA graphs of mapped functions, beside the loop: on a GPU, and by the stand-in of conftest.py."""

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import dropout

import vmap_autograd
import vmap_core
import vmap_nn
from vmap_core import CaptureError, capture, vmap
from vmap_cuda import graph, graph_backend
from vmap_cuda._on_device import OnDevice

aten = torch.ops.aten


def loop(f, *batches, in_dims=0):
    dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(batches)
    size = next(b.shape[d] for b, d in zip(batches, dims, strict=True) if d is not None)
    return torch.stack(
        [f(*(b if d is None else b.select(d, i) for b, d in zip(batches, dims, strict=True))) for i in range(size)]
    )


@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (0, None), (None, 1)])
@pytest.mark.parametrize("size", [1, 3])
def test_equal_to_the_loop(device, in_dims, size):
    def f(x, y):
        return (x * y).tanh() + y.sum()

    def make(d):
        return torch.randn([size if i == d else 4 for i in range(1 if d is None else 2)], device=device)

    step = graph(vmap(f, in_dims=in_dims), *map(make, in_dims))
    for _ in range(3):
        args = [make(d) for d in in_dims]
        before = [a.clone() for a in args]
        torch.testing.assert_close(step(*args), loop(f, *args, in_dims=in_dims))
        torch.testing.assert_close(args, before, rtol=0, atol=0)


def test_empty_batch(device):
    x = torch.randn(0, 4, device=device)
    out = graph(vmap(torch.sin), x)(x)
    assert out.shape == (0, 4)


def test_nested_maps_and_containers(device):
    def f(batch, scale):
        x, (y, n) = batch["x"], batch["rest"]
        return {"a": (x * y + n) * scale, "b": [x.sum() ** n]}

    def make(n=2):
        x, y = torch.randn(2, 3, 4, device=device), torch.randn(3, 2, device=device)
        return {"x": x, "rest": (y, n)}, torch.randn(4, device=device)

    dims, inner = {"x": 0, "rest": (1, None)}, {"x": 0, "rest": (0, None)}
    mapped = vmap(vmap(f, in_dims=(inner, None)), in_dims=(dims, None))
    step = graph(mapped, *make())
    args = make()
    out, wanted = step(*args), mapped(*args)
    assert out.keys() == wanted.keys() and type(out["b"]) is list
    torch.testing.assert_close(out, wanted)
    with pytest.raises(CaptureError, match="another value"):
        step(*make(n=3))
    with pytest.raises(CaptureError, match="structure"):
        step([args[0]], args[1])


def test_keyword_arguments(device):
    x = torch.randn(3, 4, device=device)
    by = torch.arange(4.0, device=device)
    step = graph(vmap(lambda x, by: x * by), x, by=torch.ones_like(by), copy_outputs=True, warmup=0)
    torch.testing.assert_close(step(x, by=by), x * by)


def test_outputs_are_of_the_call(device):
    x, y = torch.randn(3, 4, device=device), torch.randn(3, 4, device=device)
    mapped = vmap(lambda x: (x, x + 1, x[:1]))
    step = graph(mapped, x)
    first = step(x)
    second = step(y)
    torch.testing.assert_close(first, mapped(x))
    torch.testing.assert_close(second, mapped(y))
    assert len({o.untyped_storage().data_ptr() for o in (x, y, *first, *second)}) == 8


def test_without_copies_the_next_call_overwrites(device):
    x, y = torch.randn(2, 3, 4, device=device)
    step = graph(vmap(torch.sin), x, copy_outputs=False)
    first = step(x)
    torch.testing.assert_close(first, x.sin())
    second = step(y)
    assert first.data_ptr() == second.data_ptr()
    torch.testing.assert_close(first, y.sin())
    w = torch.randn(4, device=device, requires_grad=True)
    step = graph(vmap(lambda x: x * w), x, copy_outputs=False)
    for value in (x, y):
        (grad,) = torch.autograd.grad(step(value).sum(), w)
        torch.testing.assert_close(grad, value.sum(0))


def test_layouts_of_arguments(device):
    row, matrix = torch.randn(4, device=device), torch.randn(4, 3, device=device)
    mapped = vmap(lambda x, y, z: x * y + z)
    args = row.expand(3, 4), matrix.t(), torch.randn(3, 8, device=device)[:, ::2]
    step = graph(mapped, *args)
    torch.testing.assert_close(step(*args), mapped(*args))
    assert len(step.leaves) == 3
    complex_ = torch.randn(3, 4, dtype=torch.complex64, device=device)
    torch.testing.assert_close(graph(vmap(torch.sin), complex_.conj())(complex_.conj()), complex_.conj().sin())
    same = torch.randn(3, 4, device=device)
    torch.testing.assert_close(
        graph(vmap(torch.mul), row.expand(3, 4), row.expand(3, 4))(row.expand(3, 4), row.expand(3, 4)),
        row.square().expand(3, 4),
    )
    torch.testing.assert_close(graph(vmap(torch.mul), same, same)(same, same), same.square())


# tensors from outside


def test_tensors_from_outside_are_read_where_they_lie(device):
    w, x = torch.randn(4, device=device), torch.randn(3, 4, device=device)
    step = graph(vmap(lambda x: x * w), x)
    w.mul_(2)
    torch.testing.assert_close(step(x), x * w)
    w.data = w.clone()
    with pytest.raises(CaptureError, match="other memory"):
        step(x)


def test_writes_to_tensors_from_outside_happen_once_a_call(device):
    count, x = torch.zeros(4, device=device), torch.randn(4, device=device).expand(3, 4)

    def f(x):
        out = vmap(torch.sin)(x)
        count.add_(1)
        return out + count

    step = graph(f, x)
    assert count.tolist() == [1.0] * 4  # the run that captures is a real one, the others have left no trace
    version = count._version
    for calls in (2.0, 3.0):
        torch.testing.assert_close(step(x), x.sin() + calls)
        assert count.tolist() == [calls] * 4
    assert count._version > version
    with pytest.raises(CaptureError, match="shares its memory"):
        step(count.expand(3, 4))


def test_writes_in_inference_mode(device):
    with torch.inference_mode():
        count, x = torch.zeros(3, device=device), torch.randn(3, 4, device=device)

        def f(x):
            count.add_(1)
            return vmap(torch.sin)(x) + count[:, None]

        step = graph(f, x)
        assert count.tolist() == [1.0] * 3
        torch.testing.assert_close(step(x), x.sin() + 2)
        assert count.tolist() == [2.0] * 3
        with pytest.raises(CaptureError, match="writes to an argument"):
            graph(vmap(lambda x: x.add_(1)), x.clone())


def test_graphs_left_on_tensors_from_outside_are_refused(device):
    w, kept = torch.randn(3, 4, device=device, requires_grad=True), torch.zeros(3, 4, device=device)

    def f(x):
        out = vmap(torch.mul)(x, w)
        kept.copy_(out)
        return out

    with pytest.raises(CaptureError, match=r"leaf Variable.*in-place"):
        graph(f, torch.randn(3, 4, device=device))


def test_writes_to_arguments_are_refused(device):
    x = torch.zeros(3, 4, device=device)
    with pytest.raises(CaptureError, match=r"writes to an argument.*test_graphs\.py"):
        graph(vmap(lambda x: x.add_(1)), x)


# gradients


@pytest.mark.parametrize("in_dims", [(0, None), (1, 0), (0, 1)])
def test_gradients_of_arguments_and_of_tensors_from_outside(device, in_dims):
    w = torch.randn(4, 4, device=device, requires_grad=True)
    scale = torch.randn(4, device=device, requires_grad=True) * 2  # no leaf

    def f(x, y):
        return (w @ x).tanh() * y * scale, x.argmax()

    def make(d):
        shape = [3 if i == d else 4 for i in range(1 if d is None else 2)]
        return torch.randn(shape, device=device, requires_grad=True)

    step = graph(vmap(f, in_dims=in_dims), *map(make, in_dims))
    kept = []
    for _ in range(2):
        args = list(map(make, in_dims))
        out, index = step(*args)
        wanted = loop(lambda x, y: f(x, y)[0], *args, in_dims=in_dims)
        torch.testing.assert_close(out, wanted)
        assert not index.requires_grad and index.dtype == torch.int64
        grad = torch.randn_like(out)
        grads = torch.autograd.grad(out, (*args, w, scale), grad, retain_graph=True)
        wanted = torch.autograd.grad(wanted, (*args, w, scale), grad, retain_graph=True)
        torch.testing.assert_close(grads, wanted)
        kept.append((grads, wanted))
        again = torch.autograd.grad(out, (*args, w, scale), 2 * grad, retain_graph=True)
        torch.testing.assert_close(again, tuple(2 * g for g in wanted))
    for grads, wanted in kept:  # they are not the graph's memory
        torch.testing.assert_close(grads, wanted)


def test_accumulated_gradients_and_hooks(device):
    w, seen = torch.randn(4, device=device, requires_grad=True), []
    w.register_hook(lambda g: seen.append(1) or 2 * g)
    x = torch.randn(3, 4, device=device)
    step = graph(vmap(lambda x: (x * w).sum()), x)
    assert not seen and w.grad is None
    step(x).sum().backward()
    step(x).sum().backward()
    assert len(seen) == 2
    torch.testing.assert_close(w.grad, 4 * x.sum(0))


def test_a_training_loop(device):
    def train(make):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).to(device)
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        data = torch.randn(5, 3, 4, device=device)
        step = make(vmap(lambda x: model(x).square().sum()), data[0])
        losses = []
        for batch in data:
            loss = step(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert train(graph) == pytest.approx(train(lambda f, x: f), rel=1e-4)


def test_gradients_inside(device):
    w = torch.randn(4, device=device)

    def f(x):
        own = w.detach().requires_grad_()
        return torch.autograd.grad((x * own).sum().tanh(), own)[0]

    x = torch.randn(3, 4, device=device)
    torch.testing.assert_close(graph(vmap(f), x)(2 * x), loop(f, 2 * x))


def test_threads_take_turns(device):
    w, x = torch.randn(4, device=device), torch.randn(3, 4, device=device)
    step = graph(vmap(lambda x: (x * w).sin().cos()), x)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            outs = list(pool.map(lambda i: step(x + i), range(200)))
    finally:
        sys.setswitchinterval(interval)
    for i, out in enumerate(outs):
        torch.testing.assert_close(out, ((x + i) * w).sin().cos())


def test_per_sample_gradients_and_ensembles(device):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(device)
    grads = vmap_autograd.per_sample_grads(model, torch.nn.functional.mse_loss)
    x, y = torch.randn(3, 4, device=device), torch.randn(3, 2, device=device)
    step = graph(grads, x, y)
    torch.testing.assert_close(step(2 * x, y), grads(2 * x, y))

    members = [torch.nn.Linear(4, 2).to(device) for _ in range(3)]
    ensemble = vmap_nn.Ensemble(members)
    step = graph(ensemble, x)
    out, wanted = step(2 * x), torch.stack([m(2 * x) for m in members])
    torch.testing.assert_close(out, wanted)
    weights = list(ensemble.parameters())
    theirs = torch.autograd.grad(ensemble(2 * x).square().sum(), weights)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), weights), theirs)


def test_stale_backward_passes_are_refused(device):
    w, x = torch.randn(4, device=device, requires_grad=True), torch.randn(3, 4, device=device)
    step = graph(vmap(lambda x: (x * w).sin()), x)
    first = step(x)
    second = step(2 * x)
    with pytest.raises(CaptureError, match="later call"):
        first.sum().backward()
    second.sum().backward()
    third = step(x)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(CaptureError, match="written to between"):
        third.sum().backward()
    with pytest.raises(CaptureError, match="create_graph=True"):
        torch.autograd.grad(step(x).sum(), w, create_graph=True)


def test_what_no_gradient_reaches(device):
    x, unused = torch.randn(2, 3, 4, device=device, requires_grad=True)
    x, unused = x.detach().requires_grad_(), unused.detach().requires_grad_()
    step = graph(vmap(lambda x, u: (x * 2, (u.detach() + 1))), x, unused)
    out, other = step(x, unused)
    assert not other.requires_grad
    grads = torch.autograd.grad(out.sum(), (x, unused), allow_unused=True)
    torch.testing.assert_close(grads[0], torch.full_like(x, 2))
    assert grads[1] is None


# randomness


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_random_operations_draw_anew(device, randomness):
    mapped = vmap(lambda x: dropout(x, 0.5) + torch.randn_like(x), randomness=randomness)
    x = torch.ones(3, 64, device=device)
    torch.manual_seed(3)
    step = graph(mapped, x)
    first, second = step(x), step(x)
    torch.manual_seed(3)
    program = capture(mapped, x)
    torch.testing.assert_close((first, second), (program(x), program(x)))
    assert not torch.equal(first, second)


def test_generators_are_registered(device):
    generator = torch.Generator(device).manual_seed(0)
    x = torch.zeros(3, 4, device=device)

    def f(x, g):
        return vmap(lambda x: x + torch.randn(x.shape, generator=g, device=device), randomness="different")(x)

    step = graph(f, x, generator)
    state = generator.get_state()
    first = step(x, generator)
    assert not torch.equal(first, step(x, generator))
    generator.set_state(state)
    torch.testing.assert_close(f(x, generator), first)


def test_setting_random_state_is_refused(device):
    def f(x):
        return torch.binomial(x, torch.full_like(x, 0.5))

    with pytest.raises(CaptureError, match="sets random state"), pytest.warns(vmap_core.FallbackWarning):
        graph(vmap(f, randomness="same"), torch.ones(3, 4, device=device))


# what is refused


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda x: x[:2], "shape"),
        (lambda x: x.double(), "dtype"),
        (lambda x: x.t().contiguous().t(), "strides"),
        (lambda x: x.clone().requires_grad_(), "requires_grad"),
    ],
)
def test_other_arguments_are_refused(device, change, why):
    x = torch.randn(3, 4, device=device)
    step = graph(vmap(torch.sin), x)
    with pytest.raises(CaptureError, match=why):
        step(change(x))
    with torch.no_grad(), pytest.raises(CaptureError, match="grad mode"):
        step(x)


def test_transforms_around_it_are_refused(device):
    x = torch.randn(3, 4, device=device)
    step = graph(vmap(torch.sin), x)
    with pytest.raises(CaptureError, match="batched"):
        vmap(step)(torch.randn(2, 3, 4, device=device))
    with pytest.raises(CaptureError, match=r"torch\.func"):
        torch.func.vmap(step)(torch.randn(2, 3, 4, device=device))
    with pytest.raises(CaptureError, match="requires_grad"):
        torch.func.grad(lambda x: step(x).sum())(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(CaptureError, match="dual"):
        step(torch.autograd.forward_ad.make_dual(x, x))


def test_values_read_by_python_are_refused(device):
    with pytest.raises(CaptureError, match="reads the value"):
        graph(lambda x: vmap(torch.sin)(x) * x.sum().item(), torch.ones(3, 4, device=device))


def test_programs(device):
    x = torch.randn(3, 4, device=device)
    program = capture(vmap(torch.sin), x)
    torch.testing.assert_close(graph(program, x)(2 * x), (2 * x).sin())
    torch.testing.assert_close(program(2 * x), (2 * x).sin())
    with pytest.raises(CaptureError, match="shape"):
        graph(program, x[:2])
    with pytest.raises(ValueError, match="warmup"):
        graph(program, x, warmup=-1)


def test_as_a_backend(device):
    compiled = vmap_core.compile(vmap(torch.sin), graph_backend)
    for size in (2, 3, 2, 3):
        x = torch.randn(size, 4, device=device)
        torch.testing.assert_close(compiled(x), x.sin())
    assert compiled.cache_info()[:2] == (2, 2)


def test_streams_wait_for_each_other(device):
    x = torch.randn(3, 4, device=device)
    step = graph(vmap(torch.sin), x)
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    outs = []
    for i, stream in enumerate([first, second, second, first]):
        with torch.cuda.stream(stream):
            outs.append(step(x + i))
    if device == "cuda":
        torch.cuda.synchronize()
    else:
        assert first in second.waited and second in first.waited and second not in second.waited
    for i, out in enumerate(outs):
        torch.testing.assert_close(out, (x + i).sin())


def test_autocast(device):
    """PyTorch caches casts of weights; a graph must not hold one of those, or see them."""
    x, w = torch.randn(3, 4, device=device), torch.randn(4, 4, device=device, requires_grad=True)
    mapped = vmap(lambda x: w @ x)
    with torch.autocast(device, torch.bfloat16):
        step = graph(mapped, x)
        with torch.no_grad():
            w.mul_(2)
        out = step(x)
    with torch.autocast(device, torch.bfloat16):
        wanted = mapped(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), w), torch.autograd.grad(wanted.sum(), w))
    with pytest.raises(CaptureError, match="autocast"):
        step(x)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "run, why",
    [
        (lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(4, device="cuda")), "waits for the device"),
        (lambda x: x + torch.ones(4).cuda(), "takes tensors on|waits for the device"),
        (lambda x: x * torch.rand(()), "random numbers on cpu"),
        (lambda x: x.cpu(), "brings|waits"),
    ],
)
def test_what_the_host_does_is_refused(run, why):
    x = torch.randn(3, 4, 4, device="cuda")
    with pytest.raises(CaptureError, match=why):
        graph(vmap(run, randomness="same"), x)
    torch.testing.assert_close(graph(vmap(torch.sin), x)(x), x.sin())  # nothing is left behind


@pytest.mark.cuda
def test_what_is_captured_fails_clearly():
    """Behind PyTorch's back: an operation that CUDA itself refuses while a graph is captured."""

    @torch.library.custom_op("vmap_cuda_tests::synchronises", mutates_args=())
    def synchronises(x: torch.Tensor) -> torch.Tensor:
        torch.cuda.synchronize()
        return x + 1

    x = torch.randn(3, device="cuda")
    with pytest.raises(CaptureError, match="not allowed while it is captured|waits for the device"):
        graph(lambda x: synchronises(x), x)
    torch.randn(3, device="cuda")  # nothing is left behind: no generator waits, nor does the allocator
    torch.testing.assert_close(graph(vmap(torch.sin), x)(x), x.sin())


@pytest.mark.parametrize("device", ["stand-in"], indirect=True)
def test_a_failed_capture_is_ended(device, monkeypatch):
    """The allocator and the generators, which PyTorch leaves waiting, are told; for real in the test above."""
    generator, graphs, ended = torch.Generator().manual_seed(0), [], []

    @contextlib.contextmanager
    def refused(cuda_graph, pool=None, stream=None):
        graphs.append(cuda_graph)
        yield
        if len(graphs) == 1:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *given: ended.append(given), raising=False)
    with pytest.raises(CaptureError, match=r"not allowed while it is captured \(operation not permitted"):
        graph(lambda x, g: x + torch.randn(3, generator=g), torch.ones(3), generator)
    assert ended == [(None, torch.cuda.graph_pool_handle())] and len(graphs) == 2
    assert [g.registered for g in graphs] == [[generator]] * 2


def test_without_a_device():
    if not torch.cuda.is_available():
        with pytest.raises(CaptureError, match="PyTorch sees none"):
            graph(vmap(torch.sin), torch.ones(3))
    with pytest.raises(CaptureError, match="arg_0|x is a tensor on cpu"):
        capture(vmap(torch.sin), torch.ones(3)).run_by(graph_backend, torch.ones(3))


@pytest.mark.parametrize(
    "run, why",
    [
        (lambda x: x.to("cpu"), r"_to_copy.*brings a tensor from cuda:0 to cpu"),
        (lambda x: x + torch.rand(()), r"draws random numbers on cpu"),
        (lambda x: OnDevice(x.device).__torch_dispatch__(aten.copy_.default, (), (x, torch.ones(()))), r"copy_.*takes"),
        (lambda x: OnDevice(x.device).__torch_dispatch__(aten.add.Tensor, (), (x, torch.ones(3))), r"add.*takes"),
    ],
)
def test_only_what_the_device_does_is_repeated(run, why, monkeypatch):
    """On fake tensors, which say that they are on a GPU."""
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with FakeTensorMode():
        x = torch.ones(3, device="cuda")
        with OnDevice(x.device):
            assert (x + torch.ones(()) * 2).sum().device == x.device  # a number that is the same in every call
        with pytest.raises(CaptureError, match=why), OnDevice(x.device):
            run(x)
    assert modes == ["error", 0, "error", 0]


def test_waiting_for_the_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)

    @torch.library.custom_op("vmap_cuda_tests::waits", mutates_args=())
    def waits(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(CaptureError, match="waits.*waits for the device"), OnDevice(torch.device("cpu")):
        waits(torch.ones(3))
