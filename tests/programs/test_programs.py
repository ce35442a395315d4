"""Some random programs in every mode, against the loop; ``python -m tests.programs`` does thousands. And that it would notice."""

import contextlib
import io

import pytest
import torch

from .__main__ import WRONG, classes, main, run, table
from .chains import chain, chains
from .generate import program
from .judge import MODES, Verdict, judge
from .program import Input, Program, Statement
from .shrink import shrink

COUNT = {"values": 600, "checked": 300, "gradients": 300, "captured": 150}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
def test_programs(mode):
    outcomes = {seed: judge(program(seed), mode) for seed in range(COUNT[mode])}
    wrong = {seed: v for seed, v in outcomes.items() if v.kind in WRONG}
    assert not wrong, [program(seed).source() for seed in wrong]
    equal = sum(v.kind == "equal" for v in outcomes.values())
    assert equal > 0.7 * len(outcomes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["values", "checked"])
def test_chains(mode):
    outcomes = {number: judge(p, mode) for number in range(500) if (p := chain(number))}
    wrong = [chain(number).source() for number, v in outcomes.items() if v.kind in WRONG]
    assert not wrong, wrong
    assert sum(v.kind == "equal" for v in outcomes.values()) > 0.9 * len(outcomes) > 250


def test_each_pair_of_calls_is_a_chain_in_each_dtype():
    assert len(set(chains())) == len(chains()) == 5 * len({(first, second) for first, second, _ in chains()})
    number = next(n for n in range(50) if chain(n))
    drawn, (first, second, dtype) = chain(number), chains()[number]
    assert drawn == chain(number) and drawn.inputs[0].dtype is dtype
    assert [s.template for s in drawn.statements[:2]] == [first, second]


def test_a_seed_means_one_program():
    one, same, other = (program(seed) for seed in (5, 5, 6))
    assert one == same != other
    assert one.source() == same.source()
    assert all(torch.equal(a, b) for a, b in zip(one.values(), same.values(), strict=True))


def inputs(*dims):
    return tuple(Input(f"x{k}", (2, 3), torch.float32, (d,)) for k, d in enumerate(dims))


def statements(*lines):
    return tuple(Statement(line, line) for line in lines)


def test_the_script_runs():
    x = Input("x0", (2,), torch.bfloat16, (1, 0), order=(1, 0, 2))
    p = Program((x,), (3, 2), statements("v1 = x0 * 2", "facts.append(strides(v1))"), ("v1",), out_dim=-1)
    assert judge(p) == Verdict("equal")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(p.source(), {"__name__": "script"})
    assert "dtype=torch.bfloat16" in p.source() and ".permute([1, 0, 2])" in p.source()
    assert out.getvalue().count("[1]") == 1 + 6


@pytest.mark.parametrize(
    ("lines", "returns", "verdict"),
    [
        (["v1 = x0 + 1"], ["v1"], ("equal", "")),
        (["v1 = x0.view(5)"], ["v1"], ("both raise", "RuntimeError: v1 = x0.view(5)")),
        (["x1.add_(x0)"], ["x0"], ("refused", "InplaceError: x1.add_(x0)")),
        (["v1 = x0.sum() if torch.is_tensor(x0) and type(x0) is torch.Tensor else x0"], ["v1"], ("differs", "")),
        (["facts.append(type(x0))"], ["x0"], ("differs", "facts")),
        (["assert type(x0) is not torch.Tensor"], ["x0"], ("permits", "assert type(x0) is not torch.Tensor")),
        (["v1 = x0 if type(x0) is torch.Tensor else x0.nothing"], ["v1"], ("error", "AttributeError: v1 = x0 if")),
    ],
)
def test_verdicts(lines, returns, verdict):
    found = judge(Program(inputs(0, None), (2,), statements(*lines), tuple(returns)))
    assert found.kind == verdict[0] and found.what.startswith(verdict[1]), found


def test_a_replay_that_is_stale_is_noticed(monkeypatch):
    from . import judge as module

    def stale(function):
        made = []

        def compiled(*args):
            made[:] = made or [function(*args)]
            return made[0]

        return compiled

    monkeypatch.setattr(module, "compile", stale)
    found = judge(Program(inputs(0), (2,), statements("v1 = x0 * 2"), ("v1",)), "captured")
    assert found.kind == "differs" and "replayed: v1" in found.detail


def test_programs_shrink():
    wrong = ["v4 = v1.sum(0) if type(x0) is torch.Tensor else v1.sum(0, keepdim=True)"]
    p = Program(
        (*inputs(1, None), Input("x2", (3, 4), torch.int64, (2,))),
        (3,),
        statements("v1 = x0 + x1", "v2 = x2 * 2", "v3 = v1 + 1", *wrong, "v5 = v4 * 2"),
        ("v1", "v2", "v3", "v4", "v5"),
    )
    small = shrink(p, judge)
    assert [s.text for s in small.statements] == ["v1 = x0 + x1", *wrong]
    assert small.returns == ("v4",) and small.sizes == (1,)
    assert [i.name for i in small.inputs] == ["x0", "x1"] and small.inputs[0].dims == (0,)
    assert judge(small).kind == "differs"


def dies(seed):
    p = program(seed)
    return p if seed != 2 else Program(p.inputs, p.sizes, statements("import os; os.abort()"), (p.inputs[0].name,))


def test_the_command(capsys, monkeypatch):
    assert main(["--seeds", "0:4", "--modes", "values", "--jobs", "1"]) == 0
    assert "| values | 4 | " in capsys.readouterr().out
    assert main(["--seeds", "3", "--modes", "values", "--show"]) == 0
    assert "def f(x0" in capsys.readouterr().out
    assert main(["--seeds", "5", "--modes", "values", "--jobs", "1", "--chains"]) == 0
    assert "| values | " in capsys.readouterr().out


def test_a_process_that_dies_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda command, **options: _Dead(command))
    outcomes = run(range(3), ["values"], 1)
    assert [(o.seed, o.verdict.kind) for o in outcomes] == [(0, "crash"), (1, "crash"), (2, "crash")]
    assert "| values |" not in table(outcomes) and ("crash", "status -6") in classes(outcomes)


class _Dead:
    def __init__(self, command):
        self.stdout, self.returncode = [], -6

    def wait(self):
        return self.returncode
