"""What ``vmap rules`` tells of an operator is what the planner has run, for every overload of PyTorch's."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from vmap_core.cli.survey import who_serves
from vmap_core.dispatch import planner, resolve
from vmap_core.extend import Level, make_batched
from vmap_core.rulekit.packs import current_table
from vmap_core.rulekit.rule import Table
from vmap_core.torch_compat.operators import overloads

OPERATORS = list(overloads())
VALUES = {
    "int": 1, "SymInt": 1, "float": 1.0, "number": 1, "bool": True, "str": "mean", "ScalarType": torch.float32,
    "Layout": torch.strided, "Device": torch.device("cpu"), "Generator": None, "MemoryFormat": torch.contiguous_format,
}  # fmt: skip


def value(kind: str, x: Any) -> Any:
    """Return an argument of a type of the schema; only its type matters."""
    if kind.startswith("List["):
        return [value(kind[5:-1], x)]
    if kind.startswith("Optional["):
        return value(kind[9:-1], x)
    return x if kind == "Tensor" else VALUES[kind]


def call_of(op: Any, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call on batched tensors: those without a default."""
    needed = [a for a in op._schema.arguments if not a.has_default_value()]
    args = tuple(value(str(a.real_type), x) for a in needed if not a.kwarg_only)
    return args, {a.name: value(str(a.real_type), x) for a in needed if a.kwarg_only}


def calls(level: Level) -> Any:
    x = make_batched(torch.ones(3, 2), 0, level)
    for op in OPERATORS:
        try:
            yield op, *call_of(op, x)
        except KeyError:  # a name of a dim, a storage, a stream: such calls never have a batched tensor alone
            continue


def test_rules_tells_what_the_planner_has_run():
    table = current_table()
    level = Level(3, "different", table)
    planned = 0
    for op, args, kwargs in calls(level):
        told, served = who_serves(table, op), planner.make_plan(level, op, args, kwargs).served
        assert told.how == served.how, op
        if told.pack is not None:
            assert told.pack == ("core" if served.rule is None else served.rule.pack.partition(" ")[0]), op
            assert told.rule == ("" if served.rule is None else served.rule.place), op
        planned += 1
    assert len(OPERATORS) > 2900 and planned > 0.95 * len(OPERATORS)


class Ran(Exception):
    """A rule was run."""


def marked(rule: Any) -> Any:
    """Return a rule that says that it is run, instead."""
    if rule is None:
        return None

    def say(*args: Any, **kwargs: Any) -> Any:
        raise Ran(rule.place)

    say.__module__, say.__name__ = rule.function.__module__, rule.function.__name__
    quick: dict[str, Any] = {"leading": (), "joining": None, "in_front": None}  # ways that leave the function out
    return replace(rule, function=say, agreeing=None, by_shape=None, inplace_method=None, **quick)


def test_the_rule_told_is_the_rule_that_runs(monkeypatch: pytest.MonkeyPatch):
    for name in ("default_rule", "registered_rule", "leaf_rule"):
        native = getattr(resolve, name)
        monkeypatch.setattr(resolve, name, lambda op, native=native: marked(native(op)))
    table = Table(current_table().packs)
    table.rules = {op: marked(rule) for op, rule in table.rules.items()}
    level = Level(3, "different", table)
    ran = 0
    for op, args, kwargs in calls(level):
        served = resolve.resolve(table, op)
        if served.rule is None or not (args or kwargs):
            continue
        with pytest.raises(Ran) as said:
            planner.make_plan(level, op, args, kwargs).run(level, args, kwargs)
        if served.written is None:  # else PyTorch may choose another overload, for the arguments given
            assert str(said.value) == served.rule.place, op
        ran += 1
    assert ran > 1500


def test_what_has_no_tensors_runs_once():
    op = torch.ops.aten.linspace.default
    table = Table([])
    assert resolve.resolve(table, op) is resolve.ONCE
    level = Level(3, "error", table)
    plan = planner.make_plan(level, op, (0, 1, 3), {})
    assert plan.served is resolve.ONCE
    assert torch.equal(plan.run(level, (0, 1, 3), {})._value, torch.linspace(0, 1, 3))
