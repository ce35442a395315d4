"""`compile`: a cache of programs, compiled by backends of torch.compile too; and torch.compile around vmap."""

import shutil
import threading
import warnings

import pytest
import torch
from torch.nn import functional as F

import vmap_core
from vmap_core import CaptureError, CaptureWarning, capture, vmap


def test_captures_once_for_each_kind_of_arguments():
    calls = []

    def function(x, k):
        calls.append(None)
        return x * k

    mapped = vmap(function, in_dims=(0, None))
    compiled = vmap_core.compile(mapped)
    kinds = [
        (torch.randn(4, 5), 2),
        (torch.randn(4, 5), 2.0),
        (torch.randn(4, 5), True),
        (torch.randn(4, 5), 3),
        (torch.randn(3, 5), 2),
        (torch.randn(5, 4).T, 2),
        (torch.randn(4, 5).double(), 2),
        (torch.randn(4, 5, requires_grad=True), 2),
        (torch.randn(4, 5), torch.tensor(2)),
        (torch.randn(4, 5), 0.0),
        (torch.randn(4, 5), -0.0),
    ]
    for round_ in range(3):
        for args in kinds:
            got = compiled(*args)
            torch.testing.assert_close(got, args[0] * args[1])
            assert torch.equal(torch.signbit(got), torch.signbit(args[0] * args[1]))
        assert len(calls) == len(kinds), round_
    info = compiled.cache_info()
    assert (info.misses, info.currsize, info.uncaptured) == (len(kinds), len(kinds), 0)
    assert info.hits == 2 * len(kinds)
    compiled.cache_clear()
    assert compiled.cache_info() == (0, 0, 64, 0, 0)


def test_state_of_pytorch_is_part_of_the_kind():
    w = torch.randn(5, requires_grad=True)
    mapped = vmap(lambda x: (w * x) @ x + torch.zeros(()))
    compiled = vmap_core.compile(mapped)
    x = torch.randn(4, 5)
    assert compiled(x).requires_grad and compiled(x).requires_grad
    with torch.no_grad():
        assert not compiled(x).requires_grad and not compiled(x).requires_grad
    with torch.inference_mode():
        assert compiled(x).is_inference() and compiled(x).is_inference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), mapped(x))
        torch.testing.assert_close(compiled(x), mapped(x))
    assert compiled.cache_info().currsize == 4
    make = vmap_core.compile(vmap(lambda x: x * 2))
    number = torch.arange(3)
    assert make(number * 0.5).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        halves = vmap_core.compile(vmap(lambda x: x / 2 + torch.ones(())))
        assert halves(number).dtype == torch.float64
        torch.set_default_dtype(torch.float32)
        assert halves(number).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_trees_and_keywords():
    compiled = vmap_core.compile(vmap(lambda d, *, k=1: {n: t * k for n, t in d.items()}))
    for keys in ("ab", "ba", "abc"):
        given = {n: torch.randn(2, 3) for n in keys}
        for k in (1, 2, 1):
            out = compiled(given, k=k)
            assert list(out) == list(keys)
            torch.testing.assert_close(out, {n: t * k for n, t in given.items()})
    assert compiled.cache_info()[:2] == (3, 6)


def test_a_container_in_the_place_of_a_tensor():
    compiled = vmap_core.compile(vmap(lambda x: x[0] if isinstance(x, list) else x * 2))
    x = torch.randn(2, 3)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), x * 2)
        torch.testing.assert_close(compiled([x]), x)
        torch.testing.assert_close(compiled([x, x]), x)
    assert compiled.cache_info()[:2] == (6, 3)


def test_the_bound():
    compiled = vmap_core.compile(vmap(torch.sin), cache_size=2)
    for n in (1, 2, 3, 2, 1):
        x = torch.randn(n, 2)
        torch.testing.assert_close(compiled(x), x.sin())
    info = compiled.cache_info()
    assert (info.hits, info.misses, info.currsize, info.maxsize) == (1, 4, 2, 2)
    with pytest.raises(ValueError, match="cache_size"):
        vmap_core.compile(torch.sin, cache_size=0)
    with pytest.raises(ValueError, match="uncapturable"):
        vmap_core.compile(torch.sin, uncapturable="ignore")


def test_a_captured_tensor_of_another_kind():
    w = torch.randn(3)
    compiled = vmap_core.compile(vmap(lambda x: x * w))
    x = torch.randn(2, 3)
    compiled(x)
    with torch.no_grad():
        w.add_(1)
    torch.testing.assert_close(compiled(x), x * w)
    w.requires_grad_()
    assert compiled(x).requires_grad
    w.data = torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), x * w)
    assert compiled.cache_info().currsize == 1


def test_the_first_call_is_an_ordinary_one():
    log = []

    def function(x):
        log.append(x.shape)
        x.add_(1)
        return x, F.dropout(x, 0.5)

    mapped = vmap(function, randomness="different")
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = vmap_core.compile(mapped)(x)
        torch.manual_seed(0)
        expected = mapped(y.copy_(x - 1))
    assert log == [(3,), (3,)] and first[0] is x
    torch.testing.assert_close(first, expected)


class TestUncapturable:
    @staticmethod
    def make():
        w = torch.ones(3)
        effects = []

        def function(x):
            x.add_(1)
            effects.append(None)
            return x * w.sum().item() + 1

        return w, effects, vmap(function)

    def test_runs_as_it_is_and_says_so_once(self):
        w, effects, mapped = self.make()
        compiled = vmap_core.compile(mapped)
        x = torch.zeros(2, 3)
        with pytest.warns(CaptureWarning, match=r"reads the value.*test_compile.py.*runs without a program"):
            out = compiled(x)
        torch.testing.assert_close(out, torch.full((2, 3), 4.0))
        assert len(effects) == 1 and x[0, 0] == 1
        w.mul_(2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(compiled(x), torch.full((2, 3), 13.0))
            compiled(torch.zeros(4, 3))
        assert compiled.cache_info() == (0, 3, 64, 0, 2)

    def test_or_raises(self):
        compiled = vmap_core.compile(self.make()[2], uncapturable="error")
        with pytest.raises(CaptureError, match="reads the value"):
            compiled(torch.zeros(2, 3))


def test_arguments_that_are_no_ordinary_tensors():
    class Marked(torch.Tensor):
        pass

    compiled = vmap_core.compile(vmap(lambda x, y: x * 2, in_dims=(0, None)))
    x = torch.randn(2, 3)
    with pytest.warns(CaptureWarning, match="Marked"):
        out = compiled(x, torch.zeros(2).as_subclass(Marked))
    torch.testing.assert_close(out, x * 2)
    for other in (torch.eye(3).to_sparse(), torch.zeros(2).as_subclass(Marked)):
        torch.testing.assert_close(compiled(x, other), x * 2)
    assert compiled.cache_info().uncaptured == 2


def test_inside_other_transforms():
    compiled = vmap_core.compile(vmap(torch.sin))
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(vmap(compiled)(x), x.sin())
    compiled(x[0])
    torch.testing.assert_close(vmap(compiled)(x), x.sin())
    torch.testing.assert_close(torch.func.grad(lambda x: compiled(x).sum())(x[0]), x[0].cos())
    program = capture(lambda x: compiled(x) * 2, x[1])
    torch.testing.assert_close(program(x[0]), x[0].sin() * 2)


def test_threads():
    compiled = vmap_core.compile(vmap(lambda x: torch.sin(x) * x.sum()))
    failures = []

    def work(n):
        for i in range(50):
            x = torch.randn(n + i % 3, 4)
            if not torch.allclose(compiled(x), torch.sin(x) * x.sum(1, keepdim=True), atol=1e-5):
                failures.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class TestBackends:
    def test_any_function(self):
        seen = []

        def backend(graph_module, inputs):
            seen.append([tuple(i.shape) for i in inputs])
            return graph_module.forward

        w = torch.randn(3)
        compiled = vmap_core.compile(vmap(lambda x, k: (x * k + w, w), in_dims=(0, None)), backend)
        for n in (2, 4, 2):
            x = torch.randn(n, 3)
            torch.testing.assert_close(compiled(x, 2), (x * 2 + w, w.expand(n, 3)))
        assert seen == [[(2, 3), (3,)], [(4, 3), (3,)]]

    def test_aot(self):
        pytest.importorskip("torch._functorch.aot_autograd")
        w = torch.randn(3, 3, requires_grad=True)

        def function(x):
            with torch.no_grad():
                scale = w.sum()
            return torch.tanh(w @ x) * scale

        mapped = vmap(function)
        compiled = vmap_core.compile(mapped, "aot_eager")
        for n in (2, 5, 2):
            x = torch.randn(n, 3, requires_grad=True)
            out, expected = compiled(x), mapped(x)
            torch.testing.assert_close(out, expected)
            got = torch.autograd.grad(out.square().sum(), (w, x))
            torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), (w, x)))
            with torch.no_grad():
                w.add_(0.1)

    @pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its imports
    def test_inductor(self):
        mapped = vmap(lambda x, y: torch.sin(x) * y + x.sum())
        compiled = vmap_core.compile(mapped, "inductor")
        for _ in range(2):
            x, y = torch.randn(4, 5), torch.randn(4, 5)
            torch.testing.assert_close(compiled(x, y), mapped(x, y))

    def test_aot_writes(self):
        compiled = vmap_core.compile(vmap(lambda x: x.add_(1).mul(2)), "aot_eager")
        for _ in range(2):
            x = torch.zeros(2, 3)
            torch.testing.assert_close(compiled(x), torch.full((2, 3), 2.0))
            torch.testing.assert_close(x, torch.ones(2, 3))

    def test_aot_randomness(self):
        compiled = vmap_core.compile(vmap(lambda x: x + torch.rand(3), randomness="same"), "aot_eager")
        x = torch.zeros(4, 3)
        compiled(x)
        a, b = compiled(x), compiled(x)
        assert torch.equal(a[0], a[1]) and not torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at all tensors
class TestTorchCompile:
    """torch.compile around code that calls vmap: it breaks its graph there."""

    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def test_around_vmap(self):
        w = torch.randn(5, 5, requires_grad=True)

        def function(x):
            y = torch.relu(x)
            return vmap(lambda r: torch.tanh(w @ r).sum())(y) * 2

        compiled = torch.compile(function, backend="aot_eager")
        for _ in range(2):
            x = torch.randn(4, 5)
            torch.testing.assert_close(compiled(x), function(x))
            got = torch.autograd.grad(compiled(x).sum(), w)
            torch.testing.assert_close(got, torch.autograd.grad(function(x).sum(), w))

    def test_of_a_mapped_function(self):
        mapped = vmap(lambda r: torch.sin(r) * 2)
        x = torch.randn(4, 5)
        torch.testing.assert_close(torch.compile(mapped, backend="eager")(x), mapped(x))

    @pytest.mark.filterwarnings("ignore:Guards may run slower")  # on Python 3.13.0
    def test_in_a_module_with_programs(self):
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(5, 5)
                self.program = capture(vmap(torch.cos), torch.randn(4, 5))
                self.compiled = vmap_core.compile(vmap(torch.sin))

            def forward(self, x):
                y = vmap(lambda r: self.layer(r).relu())(x * 2)
                with torch.no_grad():
                    return self.program(y) + self.compiled(y) * 2

        with torch.no_grad():
            model = Model()
            model.program = capture(vmap(torch.cos), torch.randn(4, 5))
            compiled = torch.compile(model, backend="eager")
            for _ in range(2):
                x = torch.randn(4, 5)
                torch.testing.assert_close(compiled(x), model(x))


def test_a_compiled_function_inside_runs_as_it_is():
    compiled = torch.compile(lambda x: x.sin().sum(), backend="eager", fullgraph=True)
    x = torch.randn(4, 3)
    torch.testing.assert_close(vmap(compiled)(x), x.sin().sum(1))
    assert vmap(vmap(lambda x: compiled(x) + x))(x[:, :, None]).shape == (4, 3, 1)
    torch.testing.assert_close(compiled(x), x.sin().sum())  # and is compiled outside


def test_an_argument_that_requires_a_gradient_only_after_the_run():
    weight = torch.tensor(2.0, requires_grad=True)

    def f(x):
        x.mul_(weight)
        return x + 1

    run = vmap_core.compile(vmap(f))
    for value in (1.0, 2.0, 3.0):
        x = torch.full((3, 2), value)
        out = run(x)
        assert torch.equal(x, torch.full((3, 2), 2 * value)) and x.requires_grad
        assert torch.equal(out, x + 1) and torch.autograd.grad(out.sum(), weight)[0] == 6 * value
    assert run.cache_info().misses == 1
