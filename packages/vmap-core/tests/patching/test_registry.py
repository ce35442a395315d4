"""Patches as objects: what they replace, where, when, and that it is undone."""

import subprocess
import sys
import threading
import traceback
import types

import pytest
import torch

import vmap_core
from vmap_core import vmap
from vmap_core.extend import Patch
from vmap_core.patching import registry

X = torch.arange(6.0).reshape(2, 3)


def run(script, *args):
    out = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return out.stdout


NAMESPACE = """
import sys, types, warnings
warnings.simplefilter("ignore")
import torch, torch.utils.checkpoint, torch.optim, torch._dynamo, torch._functorch.predispatch

def namespace():
    "Every attribute of PyTorch's modules and of their classes, and the code of functions."
    found = {}
    for path, module in sorted(sys.modules.items()):
        if path.partition(".")[0] != "torch" or module is None:
            continue
        for name, value in list(vars(module).items()):
            found[path, name] = value
            if isinstance(value, type):
                found |= {(path, name, key): item for key, item in vars(value).items()}
    for key, value in list(found.items()):
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if isinstance(function, types.FunctionType):
            found[*key, "__code__"] = function.__code__
    return found

def changed(before):
    now = namespace()
    return sorted(".".join(key) for key in before if now.get(key) is not before[key])

before = namespace()
import vmap_core
packs = vmap_core.packs()
patches = vmap_core.patches()
inside = []
assert torch.equal(vmap_core.vmap(lambda x: (inside.append(changed(before)), x)[1])(torch.ones(2)), torch.ones(2))
outside = changed(before)
for patch in patches:
    patch.uninstall()
after = changed(before)
"""


def test_uninstalled_everything_is_what_it_was():
    script = (
        NAMESPACE
        + """
vmap_core.vmap(lambda x: inside.append(changed(before)) or x)(torch.ones(2))
names = {name for p in patches if not p.inside for name in p.target.split(".")}
print([sorted(after), sorted(inside[1]), [name for name in outside if names.isdisjoint(name.split(".")[-2:])]])
print(len(outside), len(inside[0]))
"""
    )
    leftover, counts = run(script).splitlines()
    assert leftover == "[[], [], []]"
    outside, inside = map(int, counts.split())
    assert 0 < outside < inside


def test_outside_mapped_functions_only_lasting_patches_are_in_place():
    vmap(torch.sin)(X)
    from vmap_core.patching.registry import _patches

    patches = [p for p in vmap_core.patches() if p.inside and p.state == "installed"]
    assert len(patches) >= 3 and set(patches) <= set(_patches)

    def there(patch):
        return [getattr(place.holder, place.name) is place.new for place in patch._places]

    seen = []
    vmap(lambda x: vmap(lambda y: (seen.append([there(p) for p in patches]), y)[1])(x))(X)
    assert all(map(all, seen[0]))
    assert not any(any(there(p)) for p in patches)
    with pytest.raises(ZeroDivisionError):
        vmap(lambda x: 1 // 0)(X)
    assert not any(any(there(p)) for p in patches)


DYNAMO = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
if sys.argv[1] == "first":
    import torch._dynamo
import vmap_core
vmap_core.packs()
vmap_core.vmap(torch.sin)(torch.ones(2))
parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
for p in parameters:
    p.grad = torch.full((3,), 4.0)

class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2
    @staticmethod
    def backward(ctx, grad):
        return grad * 2

def compiled(function, *args):
    torch._dynamo.reset()
    out = torch.compile(function, fullgraph=True, backend="eager")(*args)
    torch.testing.assert_close(out, function(*args))

x = torch.ones(3, requires_grad=True)
total = torch.compile(torch.nn.utils.clip_grad_norm_, fullgraph=True, backend="eager")(parameters, 1.0)
assert abs(total.item() - 96 ** 0.5) < 1e-4
compiled(lambda x: Double.apply(x), x)
compiled(lambda x: torch.func.vmap(torch.sin)(x), torch.ones(3))
compiled(lambda x: torch.func.grad(lambda y: y.sin().sum())(x), torch.ones(3))
compiled(lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1], torch.ones(3))
compiled(lambda x: torch.func.jacrev(torch.sin)(x), torch.ones(3))
compiled(lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False), x)
inside = torch.compile(lambda x: x.sin() + 1, fullgraph=True)
assert torch.equal(vmap_core.vmap(inside)(torch.ones(2, 3)), torch.ones(2, 3).sin() + 1)
print("compiled")
"""


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_compiler_notices_nothing(order):
    """Whether it was imported before or after."""
    assert run(DYNAMO, order) == "compiled\n"


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_threads_inside_and_outside():
    """Those outside see PyTorch's functions, or a wrapper that calls them; those inside always see the patch."""
    native = torch.autograd.Function.__dict__["apply"], torch.autograd.graph._engine_run_backward.__code__
    stop, wrong = threading.Event(), []

    def inside():
        def f(x):
            for call in (lambda: Double.apply(x), lambda: torch.autograd.graph._engine_run_backward((x,), (None,))):
                try:
                    call()
                except vmap_core.UnsupportedError:
                    continue
                wrong.append("inside")
            return x

        for _ in range(60):
            with vmap_core.use_packs():
                vmap(f)(X)
        with pytest.raises(ZeroDivisionError):
            vmap(lambda x: 1 // 0)(X)

    def outside():
        while not stop.is_set():
            x = torch.ones(3, requires_grad=True)
            Double.apply(x).sum().backward()
            if not torch.equal(x.grad, torch.full((3,), 2.0)):
                wrong.append("outside")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=inside) for _ in range(8)]
        others = [threading.Thread(target=outside) for _ in range(2)]
        for thread in (*workers, *others):
            thread.start()
        for thread in workers:
            thread.join()
        stop.set()
        for thread in others:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong, wrong
    assert native == (torch.autograd.Function.__dict__["apply"], torch.autograd.graph._engine_run_backward.__code__)


def test_levels_that_are_resumed_count():
    """A hook runs at the level after vmap has returned."""
    code = torch.autograd.graph._engine_run_backward.__code__
    seen = []

    def f(x):
        y = x * 1.0
        y.register_hook(lambda g: seen.append(torch.autograd.graph._engine_run_backward.__code__ is code))
        return y.sum()

    x = X.clone().requires_grad_()
    out = vmap(f)(x)
    out.sum().backward()
    assert seen == [False]
    assert torch.autograd.graph._engine_run_backward.__code__ is code


def test_a_bound_apply_that_was_kept_outside_is_known_inside():
    apply = Double.apply
    with vmap_core.use_packs(), pytest.raises(vmap_core.UnsupportedError, match="Function Double.*vmap-autograd"):
        vmap(lambda x: apply(x))(X)


def test_install_and_uninstall():
    made = []

    def make(native):
        def replacement(*args):
            made.append(args)
            return native(*args)

        return replacement

    native = torch.is_tensor
    patch = Patch("torch.is_tensor", make, "to try it")
    try:
        assert patch.state == "uninstalled"
        assert patch.install() is patch.install()
        assert torch.is_tensor(X) and made == [(X,)]
        assert patch in vmap_core.patches() and "installed" in repr(patch)
        patch.uninstall()
        assert torch.is_tensor is native
        patch.uninstall()
        assert torch.is_tensor is native
    finally:
        _forget(patch)


def test_the_frame_of_a_function_with_free_variables_can_be_looked_at():
    """As pytest, debuggers and reporters of errors do."""

    def make(args, function, free):
        def f(x):
            return args, function, free, x

        return f

    module = types.ModuleType("with_free_variables")
    module.f = f = make(1, 2, 3)
    sys.modules["with_free_variables"] = module
    added = Patch("with_free_variables.f", lambda native: lambda x: (*native(x)[:3], x / 0), "", inside=True).install()
    try:
        assert f(4) == (1, 2, 3, 4)
        seen = []

        def mapped(x):
            try:
                f(1)
            except ZeroDivisionError as error:
                frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
                seen.extend(dict(frame.f_locals) for frame in frames)
            return x

        vmap(mapped)(torch.ones(2))
        assert len(seen) == 3 and seen[2]["x"] == 1 and seen[1]["free"] == 3
        assert f(4) == (1, 2, 3, 4)
    finally:
        added.uninstall()
        registry._patches.remove(added)
        del sys.modules["with_free_variables"]


def test_one_that_comes_while_a_mapped_function_runs():
    native = torch.is_tensor.__code__
    patch = Patch("torch.is_tensor", lambda native: lambda x: (native(x), "seen"), "to try it", inside=True)
    seen = []

    def f(x):
        patch.install()
        seen.append(torch.is_tensor(x))
        patch.uninstall()
        seen.append(torch.is_tensor(x))
        patch.install()
        return x

    try:
        vmap(f)(X)
        assert seen == [(True, "seen"), True]
        assert torch.is_tensor(X) is True and torch.is_tensor.__code__ is native
        vmap(lambda x: (seen.append(torch.is_tensor(x)), x)[1])(X)
        assert seen[2] == (True, "seen")
    finally:
        patch.uninstall()
        _forget(patch)
    vmap(lambda x: (seen.append(torch.is_tensor(x)), x)[1])(X)
    assert seen[3] is True


def test_what_this_version_lacks_is_told():
    patch = Patch("torch.nothing_of_the_kind.at_all", lambda native: native, "to try it")
    try:
        assert patch.install().state == "missing"
        patch.uninstall()
    finally:
        _forget(patch)


def test_no_patch_is_missing_here():
    assert [p for p in vmap_core.patches() if p.state not in ("installed", "waiting")] == []


def _forget(patch):
    from vmap_core.patching import registry

    registry._patches.remove(patch)
