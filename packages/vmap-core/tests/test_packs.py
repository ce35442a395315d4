"""Rule packs load the same from anywhere, and one that does not load is named with its error."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import vmap_core
from vmap_core.extend import Rule, RulePack, aten
from vmap_core.rulekit import packs as registry

HELPERS = """
import json, threading, warnings, torch, vmap_core
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

x = torch.arange(6.0).reshape(3, 2)
def first():
    return vmap_core.vmap(torch.sin)(x)

def listed():
    import probe_vmap
    return {"rules": {p.name: [p.rules, repr(p.error)] for p in vmap_core.packs()}, "seen": probe_vmap.seen}
"""

PROBE = """
import torch
from vmap_core.extend import RulePack, hookimpl, pointwise

def state():
    leaf = torch.ones(1, requires_grad=True)
    made = torch.zeros(2)
    return [str(made.dtype), str(made.device), str(torch.get_default_device()), (leaf * 2).requires_grad, leaf.is_inference(),
            torch.is_autocast_enabled("cpu"), torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack(),
            torch._C._is_torch_function_enabled(), str(torch.autograd.grad((leaf * 3).sum(), leaf)[0])]

seen = {"module": state()}
pack = RulePack("probe")
pack.family(pointwise, torch.library.custom_op("probe::f", lambda x: x + 1, mutates_args=(), schema="(Tensor x) -> Tensor"))

@hookimpl
def vmap_rules():
    seen["hook"] = state()
    return [pack]
"""


def installed(folder, **packs):
    """Install packs, by their source, into a folder; return the environment of processes that find them."""
    for name, source in packs.items():
        (folder / f"{name}_vmap.py").write_text(textwrap.dedent(source))
        info = folder / f"{name}_vmap-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-vmap\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[vmap.rules]\n{name} = {name}_vmap\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


FORK = """
for i, program in enumerate(programs):
    if not os.fork():
        sys.stdout = sys.stderr = open(f"{folder}/{i}", "w")
        try:
            exec(program, {**globals(), "__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def run(environment, *programs):
    """Run programs, each in a process where nothing has been mapped yet; return what each prints last, read as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        given = f"import os, sys, traceback\nfolder, programs = {folder!r}, {[*map(textwrap.dedent, programs)]!r}\n"
        subprocess.run([sys.executable, "-c", HELPERS + given + FORK], env=environment, check=True, timeout=300)
        printed = [Path(folder, str(i)).read_text().splitlines() for i in range(len(programs))]
    for lines in printed:
        assert lines and lines[-1][0] in '[{"', "\n".join(lines)
    return [json.loads(lines[-1]) for lines in printed]


PLACES = {
    "plain": "first()",
    "no_grad": "with torch.no_grad(): first()",
    "inference_mode": "with torch.inference_mode(): first()",
    "default dtype": """
        torch.set_default_dtype(torch.float64)
        first()
        assert torch.get_default_dtype() == torch.float64""",
    "default device": """
        torch.set_default_device("meta")
        first()
        assert torch.zeros(2).is_meta and torch.get_default_device().type == "meta"
        torch.set_default_device(None)
        assert torch.zeros(2).device.type == "cpu\"""",
    "device context": "with torch.device('meta'): first()",
    "DisableTorchFunction": "with torch._C.DisableTorchFunction(): vmap_core.packs()",
    "DisableTorchFunctionSubclass": "with torch._C.DisableTorchFunctionSubclass(): first()",
    "function mode": "with Functions(): first()",
    "dispatch mode": "with Operators(): first()",
    "fake tensors": """
        from torch._subclasses.fake_tensor import FakeTensorMode
        with FakeTensorMode(): vmap_core.packs()""",
    "autocast": "with torch.autocast('cpu', torch.bfloat16): first()",
    "torch.func": "torch.func.grad(lambda y: (y * first().sum()).sum())(x)",
    "Function": """
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, y):
                first()
                return y * 2
            @staticmethod
            def backward(ctx, grad):
                return grad * 2
        Double.apply(x.clone().requires_grad_()).sum().backward()""",
    "backward": """
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, y):
                return y * 2
            @staticmethod
            def backward(ctx, grad):
                first()
                return grad * 2
        Double.apply(x.clone().requires_grad_()).sum().backward()""",
    "hook": """
        y = x.clone().requires_grad_()
        y.register_hook(lambda grad: first())
        y.sum().backward()""",
    "kernel": """
        op = torch.library.custom_op("places::f", lambda y: first() + y, mutates_args=(), schema="(Tensor y) -> Tensor")
        op(x)""",
    "threads": """
        start, failed = threading.Barrier(16), []
        def one():
            start.wait()
            try:
                for _ in range(3):
                    assert first().equal(x.sin())
            except BaseException as error:
                failed.append(error)
        threads = [threading.Thread(target=one) for _ in range(16)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert not failed, failed""",
}


def test_packs_load_the_same_from_anywhere(tmp_path):
    environment = installed(tmp_path, probe=PROBE)
    programs = [f"{textwrap.dedent(place)}\nprint(json.dumps(listed()))" for place in PLACES.values()]
    results = run(environment, *programs)
    expected = results[0]
    assert all(error == "None" for _, error in expected["rules"].values())
    initial = ["torch.float32", "cpu", "cpu", True, False, False, 0, 0, True, "tensor([3.])"]
    assert expected["seen"] == {"module": initial, "hook": initial} and expected["rules"]["probe"][0] == 1
    for place, result in zip(PLACES, results, strict=True):
        assert result == expected, place


MISS = """
op = torch.library.custom_op("here::f", lambda x: x + 1, mutates_args=(), schema="(Tensor x) -> Tensor")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert vmap_core.vmap(op)(x).equal(x + 1)
(message,) = (str(w.message) for w in caught if isinstance(w.message, vmap_core.FallbackWarning))
print(json.dumps([message, {p.name: p.rules for p in vmap_core.packs()}]))
"""
GOOD = """
from vmap_core.extend import RulePack, hookimpl
@hookimpl
def vmap_rules():
    return [RulePack("good")]
"""


HOOK = "from vmap_core.extend import hookimpl\n@hookimpl\ndef "
SICK = {  # the source of a pack, and what is said of it
    "import no_such_module_9":
        "No module named 'no_such_module_9', while loading rule pack '{name}', at {file}:1; pip install no_such_module_9. ",
    "import torch.no_such_module_9":
        "No module named 'torch.no_such_module_9', while loading rule pack '{name}', at {file}:1. ",
    "\nraise SystemExit(3)": "SystemExit: 3, while loading rule pack '{name}', at {file}:2. ",
    "import torch": "vmap_rules() of {name}_vmap is not there; it is to be decorated with @vmap_core.extend.hookimpl, ",
    "def vmap_rules(): return []": "vmap_rules() of {name}_vmap is not decorated with @vmap_core.extend.hookimpl, ",
    HOOK + "vmap_rulez(): return []": "unknown hook 'vmap_rulez'",
    HOOK + "vmap_rules(): pass": "vmap_rules() of {name}_vmap returned None, which is no list of RulePacks, ",
    HOOK + "vmap_rules(): return ['a']": "vmap_rules() of {name}_vmap returned ['a'], which is no list of RulePacks, ",
    HOOK + "vmap_rules(): raise SystemExit": "SystemExit, while loading rule pack '{name}', at {file}:3. ",
    "import torch, vmap_core.extend as e\ne.RulePack('a').add(torch.ops.aten.roll.default, None, kind='rule')":
        "the kind of a rule is one of ('physical', 'logical'), not 'rule' (for aten.roll.default in 'a'), ",
}  # fmt: skip


def test_packs_that_do_not_load_are_named_where_they_are_missed(tmp_path):
    names = {f"sick{i}": source for i, source in enumerate(SICK)}
    ((message, rules),) = run(installed(tmp_path, **names, good=GOOD), MISS)
    assert "good" in rules and rules["core"] > 0 and not any(rules[name] for name in names)
    for name, said in zip(names, SICK.values(), strict=True):
        _, _, about = message.partition(f"Pack {name!r} did not load: ")
        assert said.format(name=name, file=tmp_path / f"{name}_vmap.py") in about.partition("Pack 'sick")[0], message


def test_a_pack_of_this_project_that_does_not_load_is_not_said_to_be_missing(tmp_path):
    (tmp_path / "vmap_autograd.py").write_text("raise OSError('the disk is gone')")
    program = """
        def f(x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(x.sum(), x)[0]
        try:
            vmap_core.vmap(f)(x)
        except vmap_core.UnsupportedError as error:
            print(json.dumps(str(error)))"""
    (message,) = run(installed(tmp_path), program)
    assert "come with vmap-autograd, which did not load: OSError: the disk is gone, while" in message


def test_a_pack_that_failed_is_tried_again_once_it_has_been_missed(tmp_path):
    flaky = """
        import os, torch
        from vmap_core.extend import RulePack, hookimpl, pointwise
        print("tried")
        if "MENDED" not in os.environ:
            raise OSError("not yet")
        pack = RulePack("flaky")
        pack.family(pointwise, torch.ops.here.f.default)
        @hookimpl
        def vmap_rules():
            return [pack]
        """
    program = """
        import contextlib, io, os
        op = torch.library.custom_op("here::f", lambda x: x + 1, mutates_args=(), schema="(Tensor x) -> Tensor")
        def looped(function=op):
            with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()) as out:
                warnings.simplefilter("always")
                vmap_core.vmap(function)(x)
            return len(caught), out.getvalue().count("tried")
        numbers = [looped(torch.sin), looped(torch.sin), looped(lambda x: op(op(x))), looped(torch.sin), looped(torch.sin)]
        numbers.append(looped())
        os.environ["MENDED"] = ""
        numbers += [looped(), looped()]
        print(json.dumps(numbers))"""
    (numbers,) = run(installed(tmp_path, flaky=flaky), program)
    assert numbers == [[0, 1], [0, 0], [2, 0], [0, 1], [0, 0], [1, 0], [0, 1], [0, 0]]


def test_a_pack_whose_module_calls_vmap(tmp_path):
    calling = """
        import torch
        from vmap_core import vmap
        from vmap_core.extend import RulePack, hookimpl, pointwise
        assert vmap(torch.sin)(torch.zeros(2)).equal(torch.zeros(2))
        pack = RulePack("calling")
        pack.family(pointwise, torch.library.custom_op("calling::f", lambda x: x + 1, mutates_args=(), schema="(Tensor x) -> Tensor"))
        @hookimpl
        def vmap_rules():
            assert vmap(torch.cos)(torch.zeros(2)).equal(torch.ones(2))
            return [pack]
        """
    program = """
        warnings.simplefilter("error")
        {first}
        out = vmap_core.vmap(torch.ops.calling.f)(x)
        print(json.dumps([p.rules for p in vmap_core.packs() if p.name == "calling" and p.error is None]))"""
    environment = installed(tmp_path, calling=calling)
    assert run(environment, program.format(first="first()"), program.format(first="import calling_vmap")) == [[1], [1]]


def test_a_thread_that_imports_a_pack_which_calls_vmap_waits_for_nobody(tmp_path):
    slow = """
        import time
        time.sleep(1)
        from vmap_core import vmap
        import torch
        vmap(torch.sin)(torch.zeros(2))
        """
    program = """
        import importlib
        threads = [threading.Thread(target=importlib.import_module, args=("slow_vmap",)), threading.Thread(target=first)]
        for t in threads: t.start()
        for t in threads: t.join(60)
        print(json.dumps([t.is_alive() for t in threads]), flush=True)
        import os; os._exit(0)"""
    assert run(installed(tmp_path, slow=textwrap.dedent(slow) + GOOD), program) == [[False, False]]


def test_what_a_failed_pack_held_is_freed(tmp_path):
    program = """
        import gc, weakref
        def f():
            big = torch.zeros(9)
            first()
            return weakref.ref(big)
        gone = f()
        error = vmap_core.packs()[1].error
        gc.collect()
        print(json.dumps([repr(error), error.__traceback__ is None, gone() is None]))"""
    environment = {**installed(tmp_path, sick="raise OSError"), "VMAP_PACKS": "sick"}
    assert run(environment, program) == [["OSError()", True, True]]


def test_vmap_packs_names_each_pack_once(monkeypatch):
    from vmap_core.rulekit.discovery import chosen

    monkeypatch.setenv("VMAP_PACKS", "nn, linalg,nn")
    with pytest.raises(ValueError, match="VMAP_PACKS=nn, linalg,nn names a vmap rule pack twice: nn"):
        chosen(["linalg", "nn"])
    monkeypatch.setenv("VMAP_PACKS", "nn,lin")
    with pytest.raises(ValueError, match=r"no such vmap rule pack: lin; installed: \['linalg', 'nn'\]"):
        chosen(["linalg", "nn"])


def test_a_pack_may_be_chosen_twice():
    with vmap_core.use_packs("nn", "nn"):
        assert [p.name.partition(".")[0] for p in registry.current_table().packs].count("nn") > 1


def test_a_wrong_kind_is_an_error_when_the_rule_is_entered():
    pack = RulePack("kinds")
    for kind, rule in (("phsyical", print), ("", print), (None, Rule(print, kind="rule"))):
        with pytest.raises(
            ValueError, match=r"one of \('physical', 'logical'\), not .* \(for aten.roll.default in 'kinds'\)"
        ):
            pack.add(aten.roll.default, rule, kind=kind)
    assert not pack.rules
