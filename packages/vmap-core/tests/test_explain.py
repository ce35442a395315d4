"""`explain` tells what happened: rules, packs, shapes, loops, levels, places."""

import html.parser
import json
import warnings
from pathlib import Path

import pytest
import torch

from vmap_core import FallbackWarning, custom_vmap, explain, fallback_policy, sequential_vmap, use_packs, vmap
from vmap_core.rulekit.packs import _registry

W = torch.randn(4, 3)


def names(report):
    return [(o.name, o.pack) for o in report.operations]


def test_each_operation_in_order():
    def f(x, w):
        y = w @ x
        z = torch.cat([y, y[1:]])
        return z.sum() + x.norm()

    x = torch.randn(8, 3)
    report = explain(vmap(f, in_dims=(0, None)))(x, W)
    assert [n.rpartition(".")[2] for n, _ in names(report)] == ["matmul", "__getitem__", "cat", "sum", "norm", "add"]
    matmul, getitem, cat, total, norm, _ = report.operations
    assert (matmul.pack, cat.pack, total.pack, getitem.pack) == (
        "core.matmul", "core.join", "core.reduction", "core.getitem",
    )  # fmt: skip
    assert matmul.rule == "vmap_core.rules.matmul.matmul"
    assert [(t.shape, t.physical, t.bdim) for t in matmul.inputs] == [((4, 3), (4, 3), None), ((3,), (8, 3), 0)]
    assert [(t.shape, t.physical, t.bdim) for t in cat.outputs] == [((7,), (8, 7), 0)]
    assert cat.nbytes == 8 * 7 * 4 and getitem.nbytes == 0
    assert [p.name for p in norm.parts] == ["torch.linalg.vector_norm"]
    assert all(o.seconds > 0 and o.error is None for o in report.operations)
    torch.testing.assert_close(report.result, torch.stack([f(row, W) for row in x]))
    assert report.loops == []


def test_places_in_the_users_code():
    def f(x):
        return x.sin()  # this line

    (sin,) = explain(vmap(f))(torch.randn(2)).operations
    path, line = sin.location.rsplit(":", 1)
    assert path == __file__ and "this line" in Path(path).read_text().splitlines()[int(line) - 1]


def test_loops_are_flagged():
    def f(x):
        return torch.conv_tbc(x[:, None, None], torch.ones(1, 1, 1), torch.zeros(1))

    with pytest.warns(FallbackWarning):
        report = explain(vmap(f))(torch.randn(5, 4))
    (loop,) = report.loops
    assert loop.pack == "core (loop)" and "conv_tbc" in loop.loop and __file__ in loop.loop
    assert "1 of them once per sample" in str(report) and "! F.conv_tbc" in str(report)
    assert 'class="loop"' in report.to_html() and "no batching rule" in report.to_html()


def test_levels_are_told_apart():
    report = explain(vmap(vmap(lambda a, b: a * b, in_dims=(0, None)), in_dims=(None, 0)))(
        torch.randn(4), torch.randn(5)
    )
    (mul,) = report.operations
    assert (mul.depth, [p.depth for p in mul.parts]) == (1, [0])
    assert mul.outputs[0].shape == () and mul.outputs[0].physical == mul.parts[0].outputs[0].physical
    assert "level 2: mul" in str(report)


def test_a_function_that_maps_inside():
    report = explain(lambda x: vmap(torch.sin)(x) + vmap(torch.cos)(x))(torch.randn(3))
    assert names(report) == [("torch.sin", "core (by tag)"), ("torch.cos", "core (by tag)")]


def test_functions_with_rules_of_their_own():
    @custom_vmap
    def double(x):
        return x + x

    @double.def_vmap
    def rule(info, in_dims, x):
        return x * 2, in_dims[0]

    report = explain(vmap(double))(torch.randn(3, 2))
    assert [(o.name.rpartition(".")[2], o.pack) for o in report.operations] == [("double", "a rule of its own")]


def test_what_all_samples_share_runs_once():
    report = explain(vmap(lambda x: x + torch.ones(2).exp()))(torch.randn(3, 2))
    assert [o.inputs[0].bdim for o in report.operations if o.name.endswith("exp")] == [None]
    assert "once, for all samples" in str(report)


def test_the_packs_of_others():
    with use_packs(), fallback_policy("silent"):
        report = explain(vmap(torch.det))(torch.eye(2).expand(3, 2, 2))
    assert not any(o.pack.startswith("linalg") for o in report.operations)
    report = explain(vmap(torch.det))(torch.eye(2).expand(3, 2, 2))
    assert any(o.pack.startswith("linalg") for o in report.operations)


def test_an_error_passes_and_nothing_stays():
    before = dict(_registry.tables)

    def f(x):
        x.sin()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        explain(vmap(f))(torch.randn(3))
    assert _registry.tables == before


class Checker(html.parser.HTMLParser):
    """Sees that what is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        assert not any(k in ("src", "href") for k, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_forms():
    report = explain(vmap(lambda x: torch.where(x > 0, x, -x).sum()))(torch.randn(3, 4))
    as_dict = json.loads(json.dumps(report.to_dict()))
    assert [o["name"] for o in as_dict["operations"]] == [o.name for o in report.operations]
    assert as_dict["operations"][0]["outputs"][0] == {
        "shape": [4],
        "physical": [3, 4],
        "bdim": 0,
        "dtype": "torch.bool",
    }
    assert sum(count for _, count, _, _ in report.totals()) == len(report.operations)
    checker = Checker()
    checker.feed(report.to_html())
    assert checker.open == []
    assert "&lt;lambda&gt;" in report.to_html() and report._repr_html_() == report.to_html()
    lines = str(report).splitlines()
    assert lines[0].startswith("<lambda>: 4 operations, none of them in a loop") and len(lines) == 4 + 4


def test_nothing_is_watched_outside():
    table = _registry.table(None)
    explain(vmap(torch.sinc))(torch.randn(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vmap(torch.sinc)(torch.randn(3))
    assert _registry.table(None) is table
    assert not any("watched" in getattr(p, "__qualname__", "") for p in table.plans.values())


def test_a_rule_that_passes_a_call_on_is_not_named_beside_what_served_it():
    (operation,) = explain(vmap(lambda x: torch.norm(x, "nuc")))(torch.randn(3, 2, 2)).operations
    assert (operation.pack, operation.rule) == ("Python body", "")
    assert any(part.rule for part in operation.parts)


def test_a_loop_on_purpose_is_called_one():
    @sequential_vmap
    def halvings(x):
        while x > 1:
            x = x / 2
        return x

    report = explain(vmap(halvings))(torch.tensor([1.0, 5.0]))
    assert [(o.name.rpartition(".")[2], o.pack) for o in report.operations] == [
        ("halvings", "a loop over the samples, on purpose")
    ]
    assert str(report).startswith("halvings: 1 operation,")


def test_questions_about_shared_tensors_are_no_operations():
    shared = torch.ones(3)
    report = explain(vmap(lambda x: x * len(shared) * shared.dim()))(torch.ones(2))
    assert {o.name.rpartition(".")[2] for o in report.operations} == {"mul"}
