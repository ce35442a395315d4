"""Operators are looked up, and rules of families made, when they are first asked for."""

import json
import subprocess
import sys

import pytest
import torch

from vmap_core import PackConflictError, vmap
from vmap_core.extend import RulePack, aten, named_aten, pointwise, register, unregister
from vmap_core.rulekit.rule import Table
from vmap_core.torch_compat.operators import NamedOverload, OpOverload

LOG2 = named_aten.log2.default
NO_SUCH = named_aten.no_such_operator.default, named_aten.log2.no_such_overload


def test_at_the_top_of_a_module_it_is_a_name_and_in_a_function_the_overload():
    real = torch.ops.aten.log2.default
    assert type(LOG2) is NamedOverload
    assert aten.log2.default is named_aten.log2.default is real
    assert isinstance(LOG2, OpOverload) and LOG2 == real and real == LOG2 and {real: 1}[LOG2] == 1
    assert (str(LOG2), repr(LOG2), LOG2.name(), LOG2._schema) == (str(real), repr(real), real.name(), real._schema)
    assert LOG2(torch.tensor(8.0)) == 3 and LOG2 != torch.ops.aten.log.default


def test_what_this_version_lacks_is_missing_from_the_start():
    pack = RulePack("late")
    pack.family(pointwise, *NO_SUCH)
    assert pack.missing == {"aten.no_such_operator.default", "aten.log2.no_such_overload"} and not pack.rules


def test_a_family_makes_a_rule_once_when_it_is_asked_for_as_if_the_pack_were_loaded():
    made = []

    def family(op):
        made.append((op, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.zeros(1).dtype))
        return pointwise(op)

    pack = RulePack("late")
    pack.family(family, LOG2, override=True)
    table = Table([pack])
    assert len(pack.rules) == len(table.rules) == 1 and list(table.rules) == [aten.log2.default] and not made
    with torch.inference_mode():
        rule = table.rule(aten.log2.default)
    assert made == [(aten.log2.default, True, False, torch.float32)] and type(made[0][0]) is OpOverload
    assert rule is table.rule(LOG2) is pack.rules[LOG2] and len(made) == 1
    assert (rule.pack, rule.override, rule.kind) == ("late", True, "physical")


def test_an_overload_and_its_name_are_one_operator():
    pack, other = RulePack("late"), RulePack("other")
    pack.family(pointwise, LOG2)
    with pytest.raises(PackConflictError, match="pack 'late' already has a rule for aten.log2.default"):
        pack.add(aten.log2.default, print)
    other.add(aten.log2.default, print)
    with pytest.raises(PackConflictError, match="'late' and 'other' both have a rule for aten.log2.default"):
        Table([pack, other])


def test_a_packet_is_no_overload():
    for packet in (torch.ops.aten.log2, aten.log2, named_aten.log2):
        with pytest.raises(TypeError, match=r"per overload: name one of \['aten.log2.default', 'aten.log2.out'\]"):
            RulePack("late").add(packet, print)


def test_a_rule_that_cannot_be_made_says_so_where_it_is_used():
    def family(op):
        raise TypeError(f"not for {op}")

    pack = RulePack("late")
    pack.family(family, named_log_sigmoid, override=True)
    register(pack)
    try:
        with pytest.raises(TypeError, match="not for aten.log_sigmoid_forward.default"):
            vmap(lambda x: torch.ops.aten.log_sigmoid_forward(x))(torch.ones(3))
    finally:
        unregister("late")


named_log_sigmoid = named_aten.log_sigmoid_forward.default

FIRST = """
import gc, json, sys, torch, vmap_core
from torch._ops import OpOverload
from vmap_core.rulekit.rule import Entry
from vmap_core.torch_compat.operators import NamedOverload
counted, init = [0], OpOverload.__init__
def counting(*args, **kwargs):
    counted[0] += 1
    init(*args, **kwargs)
OpOverload.__init__ = counting
vmap_core.vmap(torch.sin)(torch.ones(3))
made = counted[0]
names = [o for o in gc.get_objects() if type(o) is NamedOverload]
kept = [str(o) for o in names for r in gc.get_referrers(o) if type(r).__name__ in ("cell", "partial")]
kept += [f"{m}.{k}" for m, module in [*sys.modules.items()] if m.startswith("vmap_") for k, v in vars(module).items()
         if type(v) is NamedOverload and not k.startswith("_")]
print(json.dumps([made, len(names), len(vmap_core.rulekit.packs.current_table().rules), kept]))
"""


def test_the_first_vmap_looks_up_few_operators_and_no_rule_holds_a_name():
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
    made, names, rules, kept = json.loads(done.stdout)
    assert made < 50 and names > 500 and rules > 700
    assert not kept  # it would be told from the overload by `is`, and cost each call more
