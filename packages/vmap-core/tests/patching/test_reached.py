"""Every patch of the core is reached: a call inside a mapped function runs what it puts there."""

import contextlib

import pytest
import torch
from torch.nn import functional as F

import vmap_core
from vmap_core import vmap
from vmap_core.patching import guards, registry

X = torch.arange(12.0).reshape(2, 2, 3)
W = torch.ones(3, requires_grad=True)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def autocast(x):
    with torch.autocast("cpu"):
        return x @ x.mT


def chunked(x):
    from torch._functorch.apis import chunk_vmap  # maps without torch.vmap

    return chunk_vmap(torch.sin, chunks=2)(x)


def scripted(x):
    return torch.jit.CompilationUnit("def f(x):\n    return x * 2\n").f(x)


SCRIPTED = torch.jit.script(torch.nn.Linear(3, 2))
FUNC = "torch._functorch.eager_transforms"
CALLS = {
    "torch.autograd.Function.apply": lambda x: Double.apply(W) * x,
    "torch.autograd.graph._engine_run_backward": lambda x: torch.autograd.backward((W * W).sum()),
    "torch.overrides.handle_torch_function": lambda x: F.softmax(x, 0),
    "torch.set_autocast_enabled": autocast,
    "torch._dynamo.eval_frame._callback_from_stance": lambda x: torch.compile(torch.sin, backend="eager")(x),
    "torch._functorch.apis.vmap_impl": lambda x: torch.func.vmap(torch.sin)(x),
    "torch.utils._foreach_utils._group_tensors_by_device_and_dtype": lambda x: torch.nn.utils.get_total_norm([x]),
    "torch._C.ScriptFunction.__call__": scripted,
    "torch._C.ScriptMethod.__call__": torch.jit.trace(torch.nn.Linear(3, 2), torch.ones(1, 3)),
    "torch._C._swap_tensor_impl": lambda x: torch._C._swap_tensor_impl(x, x.clone()),
    "torch.utils.swap_tensors": lambda x: torch.utils.swap_tensors(x, x.clone()),
    "torch._C._nested.nested_tensor": lambda x: torch.nested.nested_tensor([x, x]),
    "torch._C._is_alias_of": lambda x: x + torch._C._is_alias_of(x, x),
    "torch._C._overlaps": lambda x: torch._C._overlaps(x, x),
    "torch._C._storage_address": lambda x: torch._C._storage_address(x),
    "torch.nn.Parameter.__new__": torch.nn.Parameter,
    "torch._C.ScriptObject.setattr": lambda x: setattr(SCRIPTED, "weight", x),
    "torch._C._dynamo.guards.assert_alignment": lambda x: torch._C._dynamo.guards.assert_alignment(x, 1),
    "torch._C._dynamo.guards.copy_if_misaligned": lambda x: torch._C._dynamo.guards.copy_if_misaligned(x),
    "torch._C._dynamo.guards.copy_misaligned": lambda x: torch._C._dynamo.guards.copy_misaligned(x),
    "torch.utils.dlpack.to_dlpack": lambda x: torch.utils.dlpack.to_dlpack(x),
    "torch.random.set_rng_state": lambda x: torch.set_rng_state(x),
    guards.ADD_BATCH_DIM: chunked,
    f"{FUNC}._wrap_for_grad": lambda x: torch.func.grad(torch.sum)(x),
    f"{FUNC}._wrap_functional_tensor": lambda x: torch.func.functionalize(torch.sin)(x),
}
OWN = [p for p in registry._patches if p.make.__module__ == guards.__name__]


@pytest.fixture
def no_transforms():
    """Without the transforms that vmap-autograd puts in the place of torch.func's."""
    theirs = [p for p in vmap_core.patches() if p.target.startswith(FUNC) and p not in OWN and p.state == "installed"]
    for patch in theirs:
        patch.uninstall()
    yield
    for patch in theirs:
        patch.install()


@pytest.mark.parametrize("patch", OWN, ids=lambda p: p.target)
def test_reached(patch, counted, no_transforms):
    with vmap_core.use_packs(), counted(patch) as calls, contextlib.suppress(vmap_core.UnsupportedError):
        vmap(CALLS[patch.target], out_dims=None if "backward" in patch.target else 0)(X)
    assert calls


@pytest.mark.parametrize("patch", [p for p in OWN if "set_rng" in p.target], ids=lambda p: p.target)
def test_it_is_told_whose_it_is(patch):
    assert patch.why.endswith(".") and patch.tried and patch.state == "installed"
    with pytest.raises(vmap_core.UnsupportedError, match=r"torch\.set_rng_state.*Instead: return"):
        vmap(lambda x: torch.random.set_rng_state(x))(X)


@pytest.mark.parametrize("swap", [torch.utils.swap_tensors, torch._C._swap_tensor_impl])
def test_tensors_are_not_exchanged_behind_their_objects(swap):
    kept = []

    def f(x):
        made = torch.ones(3)
        kept.append(made)
        for pair in ((x, x.clone()), (x, made), (made, torch.zeros(3)), (outer, made)):
            with pytest.raises(vmap_core.UnsupportedError, match=r"swap_tensors.*Instead: exchange the names"):
                swap(*pair)
        return x * made

    outer = torch.zeros(3)
    torch.testing.assert_close(vmap(f)(X), X)
    with pytest.raises(vmap_core.UnsupportedError, match="swap_tensors"):
        swap(kept[0], outer)
    a, b = torch.ones(2), torch.zeros(3)
    swap(a, b)
    assert a.shape == (3,) and b.shape == (2,)


def test_the_engine_runs_the_rule_of_backward():
    """Where a version of PyTorch does not ask for it itself."""
    pack, seen = vmap_core.extend.RulePack("test-engine"), []

    @pack.logical(torch.autograd.backward, override=True)
    def backward(info, tensors, grads, *, retain_graph, create_graph, inputs):
        seen.append((len(tensors), len(grads), retain_graph, create_graph, inputs))

    def f(x):
        torch.autograd.graph._engine_run_backward(
            (x.sum(),), (torch.ones(()),), True, False, (), allow_unreachable=True, accumulate_grad=True
        )
        return x

    vmap_core.extend.register(pack)
    try:
        with vmap_core.use_packs("test-engine"):
            vmap(f)(X)
    finally:
        vmap_core.extend.unregister("test-engine")
    assert seen == [(1, 1, True, False, None)]
