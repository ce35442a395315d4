"""Entry points of PyTorch that do not ask ``__torch_function__``: never a crash, never a lost gradient."""

import os
import signal
import subprocess
import sys

import pytest
import torch

import vmap_core
from vmap_core import UnsupportedError, vmap
from vmap_core.extend import RulePack, register, unregister
from vmap_core.testing import check_rule

X = torch.arange(6.0).reshape(2, 3)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


# Run in a child process each: x (3,), b (), i () are batched.
CALLS = """
torch.full((3,), b) | torch.full_like(x, b) | torch.add(x, x, alpha=b) | torch.clamp(x, b, 1.0) | torch.clamp(w, b, 1.0)
torch.select(x, 0, i) | torch.narrow(x, 0, i, 1) | torch.linspace(0, 1, i) | torch.tril_indices(i, 3) | torch.zeros(i)
torch.zeros([i, 2]) | torch.eye(i) | w.view(i, -1) | w[i] | w[i:] | torch.roll(x, i) | torch.topk(x, i) | x.sum(dim=i)
torch.tensor([b, b]) | torch.tensor(x) | torch.as_tensor([b]) | torch.asarray(x) | torch.scalar_tensor(b)
torch.FloatTensor(x) | torch.Tensor([b, b]) | w.new_tensor([b]) | w.new(x) | torch.ones(2).fill_(b) | 2 ** b
Double.apply(x) | Double.apply(w) | Captures(x).apply(w) | Saves(x).apply(w) | torch._C._functions.UndefinedGrad()(x)
torch.autograd.grad(x.sum(), x) | torch.autograd.grad(w.sum(), x) | torch.autograd.grad(w.sum(), w, x.sum())
torch.autograd.backward(x.sum()) | torch.autograd.backward([w.sum()], [b]) | w.sum().backward(b) | x.sum().backward()
w.sum().backward(inputs=[x]) | torch.autograd.Variable._execution_engine.run_backward((x,), (b,), False, False, (), True, True)
torch.from_dlpack(x) | torch.utils.dlpack.to_dlpack(x) | np.asarray(x) | np.array([b, b]) | torch.from_numpy(x)
torch.save(x, io.BytesIO()) | pickle.dumps(x) | copy.copy(x) | copy.deepcopy(x) | memoryview(x) | x.numpy()
torch.utils.data.default_collate([x, x]) | torch.nn.Parameter(x) | torch.nn.Buffer(x) | x.data_ptr() | x.storage()
setattr(w, "data", x) | setattr(w, "grad", x) | w.set_(x) | x.share_memory_() | x.untyped_storage()
torch._C._is_alias_of(x, x) | torch._C._overlaps(x, x) | torch._C._storage_address(x) | torch._C._dispatch_keys(x)
torch.func.vmap(torch.sin)(x) | torch.func.grad(torch.sum)(x) | torch.func.functionalize(torch.sin)(x)
torch.func.jvp(torch.sin, (x,), (x,)) | torch.nested.nested_tensor([x, x]) | torch.nested.as_nested_tensor([x, x])
checkpoint(torch.sin, x, use_reentrant=True) | checkpoint(torch.sin, x, use_reentrant=False)
torch.sparse_coo_tensor([[0, 1, 2]], x, (9,)).to_dense() | torch.sparse_csr_tensor([0, 1], [0], [b], (1, 1))
torch.set_rng_state(x) | torch.Generator().set_state(x) | torch.manual_seed(i) | torch.Size([i]) | torch.vander(x)
torch.optim.SGD([x], lr=0.1) | torch.jit.trace(torch.sin, (x,)) | torch.ops.aten.add.Scalar(w, b) | torch.result_type(x, b)
torch.Tensor.sin(x) | scripted(x) | traced(x) | torch._C._to_dlpack(x) | torch._C._jit_flatten((x,)) | torch._C._get_tensor_metadata(x)
torch._C._group_tensors_by_device_and_dtype([[x]], False) | torch.nn.utils.parameters_to_vector([x]) | list(range(i))
w.detach().map_(x, lambda a, b: a) | w.detach().apply_(x) | torch.testing.assert_close(x, x) | repr(x) | f"{b:.2f}"
"""

SCRIPT = f"""
import copy, io, os, pickle, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import torch, torch.utils.checkpoint, torch.utils.dlpack
import vmap_core
from torch.utils.checkpoint import checkpoint

class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2
    @staticmethod
    def backward(ctx, grad):
        return grad * 2

scripted = torch.jit.CompilationUnit("def f(x):\\n    return x * 2\\n").f
traced = torch.jit.trace(torch.nn.Linear(3, 2), torch.ones(1, 3))

def Captures(x):
    class Function(Double):
        @staticmethod
        def forward(ctx, w):
            return w * x
    return Function

def Saves(x):
    class Function(Double):
        @staticmethod
        def forward(ctx, w):
            ctx.save_for_backward(x)
            return w * 2
    return Function

w = torch.ones(3, requires_grad=True)
lines = '''{CALLS}'''.strip().splitlines()

def attempt(line, x, b, i):
    pid = os.fork()
    if not pid:
        for call in line.split(" | "):
            try:
                eval(call, globals(), dict(x=x, b=b, i=i))
            except Exception:
                pass
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status:
        print("CRASH", status, line, flush=True)

def function(*sample):
    for line in lines:
        attempt(line, *sample)
    leaked.append(sample)
    return sample[0]

leaked = []
x = torch.arange(6.0).reshape(2, 3)
vmap_core.vmap(function, in_dims=(1, 0, 0))(x.T, torch.tensor([2.0, 3.0]), torch.tensor([1, 2]))
for line in lines:
    attempt(line, *leaked[0])
print("tried", len(lines))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_no_call_crashes():
    """Neither on live tensors nor on dead ones."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, env=env, check=False
    )
    assert out.returncode == 0, signal.Signals(-out.returncode).name if out.returncode < 0 else out.stderr
    assert "CRASH" not in out.stdout, out.stdout
    assert "tried" in out.stdout


def test_autograd_without_its_pack_names_the_pack():
    w = torch.ones(3, requires_grad=True)
    x = X.clone().requires_grad_()
    calls = [
        lambda s: Double.apply(s),
        lambda s: torch.autograd.grad(s.sum(), s)[0],
        lambda s: torch.autograd.grad(w.sum(), w, s.sum())[0],
        lambda s: torch.autograd.backward(s.sum()),
        lambda s: s.sum().backward(),
        lambda s: w.sum().backward(s.sum()),
        lambda s: torch.utils.checkpoint.checkpoint(torch.sin, s, use_reentrant=True),
    ]
    with vmap_core.use_packs():
        for call in calls:
            with pytest.raises(UnsupportedError, match="pip install vmap-autograd"):
                vmap(call)(x)
            with pytest.raises(UnsupportedError, match="pip install vmap-autograd"):
                vmap(vmap(call))(x[:, None])


def test_a_function_may_not_capture_a_batched_tensor():
    w = torch.ones(3, requires_grad=True)

    def f(x):
        class Captures(Double):
            @staticmethod
            def forward(ctx, w):
                return w * x

        return Captures.apply(w)

    def g(x):
        class Saves(Double):
            @staticmethod
            def forward(ctx, w):
                ctx.save_for_backward(x)
                return w * 2

        return Saves.apply(w)

    with vmap_core.use_packs():
        for function in (f, g):
            with pytest.raises(UnsupportedError, match="vmap-autograd"):
                vmap(function)(X)


def test_a_function_on_plain_tensors_inside_is_itself():
    w = torch.ones(3, requires_grad=True)
    with vmap_core.use_packs():
        out = vmap(lambda x: Double.apply(w) * x + Double.apply(w * w) * 0)(X)
        nested = vmap(vmap(lambda x: Double.apply(w) * x))(X[None])
    assert torch.equal(torch.autograd.grad(out.sum(), w)[0], 2 * X.sum(0))
    assert torch.equal(torch.autograd.grad(nested.sum(), w)[0], 2 * X.sum(0))


def test_functions_outside_are_untouched():
    x = torch.ones(3, requires_grad=True)
    Double.apply(x).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    y = (x * x).sum()
    torch.autograd.backward(y)
    assert torch.equal(x.grad, torch.full((3,), 4.0))


def test_a_pack_serves_the_entry_points():
    pack = RulePack("test-entry")
    seen = []

    @pack.logical(torch.autograd.Function.apply, override=True)
    def apply(info, cls, *args):
        seen.append(cls)
        with info.pushed():
            return args[0] * 2

    @pack.logical(torch.autograd.backward, override=True)
    def backward(info, tensors, **options):
        seen.append("backward")

    register(pack)
    try:
        with vmap_core.use_packs("test-entry"):
            assert torch.equal(vmap(Double.apply)(X), X * 2)
            assert torch.equal(vmap(vmap(Double.apply))(X), X * 2)

            def f(x):
                with torch.device("cpu"):
                    torch.autograd.backward(x.sum())
                    return Double.apply(x)

            assert torch.equal(vmap(f)(X), X * 2)
    finally:
        unregister("test-entry")
    assert seen == [Double, Double, "backward", Double]


class Factory(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone(), torch.empty(1)

    @staticmethod
    def backward(ctx, grad, _):
        return grad


@pytest.mark.parametrize("packs", [(), ("autograd",)])
def test_modes_of_the_user_stay_active(packs):
    w = torch.ones(2)
    with torch.device("meta"):
        assert Factory.apply(w)[1].is_meta

    def f(x):
        with torch.device("meta"):
            assert Factory.apply(w)[1].is_meta
        return x + Factory.apply(w)[0].sum()

    with vmap_core.use_packs(*packs):
        assert torch.equal(vmap(f)(X), X + 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.tensordot(x, w.conj(), 1).abs(),
        lambda x, w: torch.kron(x, w.conj()).abs().sum(),
        lambda x, w: torch.cov(torch.stack([x, w.conj()])).abs().sum(),
        lambda x, w: torch.nn.functional.cosine_similarity(x.real, w.conj().imag, dim=0),
    ],
)
def test_gradients_of_lazy_conjugates_behind_the_dispatcher(function):
    x, w = torch.randn(3, 4, dtype=torch.cdouble), torch.randn(4, dtype=torch.cdouble, requires_grad=True)
    ours = torch.autograd.grad(vmap(lambda x: function(x, w))(x).sum(), w)
    torch.testing.assert_close(ours, torch.autograd.grad(sum(function(row, w) for row in x), w))


SCRIPTS = """
def arithmetic(x, y):
    if x.dim() > 1:
        return x * 2 + y.sum()
    return x

def writes(x, y):
    out = torch.empty_like(x)
    torch.mul(x, y, out=out)
    out.masked_fill_(x < 0, 1.0)
    return out, torch.max(out, 0)

def loops(x, y):
    for i in range(3):
        x = torch.tanh(x) * y
    return x
"""


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["arithmetic", "writes", "loops"])
def test_torchscript_functions(name):
    scripted = getattr(torch.jit.CompilationUnit(SCRIPTS), name)
    assert check_rule(scripted, torch.randn(3, 4), torch.randn(3, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_modules():
    module = torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh()), torch.ones(2, 4))
    assert check_rule(module, torch.randn(2, 4))
    assert check_rule(torch.jit.script(torch.nn.Conv1d(2, 3, 2)), torch.randn(1, 2, 5))
    x = torch.randn(3, 4)
    vmap(module)(x).square().sum().backward()
    got = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module(x).square().sum().backward()
    torch.testing.assert_close(got, [p.grad for p in module.parameters()])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_an_error_inside_torchscript_keeps_its_text():
    unit = torch.jit.CompilationUnit("def fill(x, y):\n    return y.copy_(x)\n")
    shared = torch.zeros(3)
    with pytest.raises(vmap_core.InplaceError, match=r"(?s)copy_.*Instead"):
        vmap(lambda x: unit.fill(x, shared))(X)
    leaked = []
    vmap(lambda x: (leaked.append(x), x)[1])(X)
    with pytest.raises(RuntimeError):
        unit.fill(leaked[0], leaked[0])


def test_out_overloads():
    """They come from C++ with the names of their schema."""

    def function(x):
        values, indices = x.new_empty(3), torch.empty(3, dtype=torch.long)
        torch.ops.aten.max.dim_max(x, 1, max=values, max_values=indices)
        product = torch.ops.aten.mul.out(x, x, out=torch.empty(3, 4))
        return values, indices, product, torch.ops.aten.sum.IntList_out(x, [0, 1], out=torch.empty(()))

    assert check_rule(function, torch.randn(3, 4))
