"""Short cuts: a rule specialised for the calls of one signature, as a few lines of Python that are made for it.

What a call has to find out step by step, its signature tells once: which arguments are batched tensors, which may be handed
on as they are, where each stands in the schema's order. So the lines look at levels and batch dims, and at nothing
else; a call that is not of the kind they are made for takes the general way.
"""

from __future__ import annotations

from types import MethodDescriptorType
from typing import Any

import torch
from torch import Tensor

from ..levels.args import has_tensor, wrap
from ..levels.layout import lay_out, seen, settled
from ..levels.sharing import refuse_seen
from ..levels.tensor import BatchedTensor, batched_objects, rank_of
from ..rulekit.dims import lie_alike
from ..rulekit.rule import Leading, Rule
from ..torch_compat.operators import RANDOM, OpOverload, returns_view
from .binding import Arrange
from .plan import Run
from .steps import Known, beside_shared, joined, padded, unlisted
from .ways import SCOPE, Lines

BATCHED, LIST, PLAIN, OTHER = "batched", "list", "plain", "other"


def specialise(rule: Rule, op: OpOverload | None, arrange: Arrange | None, args: Any, kwargs: Any, general: Run) -> Run:
    """Return what runs calls of one signature by a rule.

    Args:
        rule: the rule.
        op: the overload that is called.
        arrange: brings the arguments into the schema's order; None where they are.
        args: arguments of the first such call; their types hold for all.
        kwargs: its keyword arguments.
        general: what runs all other calls.
    """
    if op is not None and ([str(r.type) for r in op._schema.returns] != ["Tensor"] or RANDOM in op.tags):
        return general

    def made(text: str, **names: Any) -> Run:
        return Lines(text, {"general": general, **names}).run(len(args))

    call = _Call(arrange, args, kwargs)
    kinds = [kind for _, kind in call.operands]
    if rule.kind == "logical":
        if arrange is not None:
            return general
        given = ", ".join(["level", *(f"a{i}" for i in range(len(args))), *["**kwargs"] * bool(kwargs)])
        expression = (
            (rule.in_front or {}).get(tuple(map(type, args[1:]))) if args and type(args[0]) is BatchedTensor else None
        )
        in_front = [] if expression is None or kwargs else _in_front(expression)
        return made(_lines(*in_front, f"return function({given})"), function=rule.function)
    if not call.is_simple:
        return general
    if rule.by_shape is not None and kinds[:1] == [BATCHED] and set(kinds[1:]) <= {OTHER}:
        return made(call.by_shape(op is None or returns_view(op)), known=Known(rule.by_shape, arrange))
    if rule.kind != "physical" or op is None or returns_view(op):
        return general
    if rule.inplace_method is not None:
        fits = arrange is None and not kwargs and len(kinds) == 2 and kinds[0] == BATCHED
        return made(call.in_place(rule.inplace_method)) if fits and _is_operand(args[1]) else general
    if rule.agreeing is not None:
        text = call.agreeing()
        return general if text is None else made(text, emit=rule.agreeing, method=_method_of(rule.agreeing))
    if op._schema.is_mutable or rule.may_return_self or not {BATCHED, LIST} & set(kinds):
        return general
    if rule.joining is not None and kinds[:1] == [LIST] and len(kinds) <= 2 and not call.options:
        dim = call.operands[1][0] if len(kinds) == 2 else "0"
        lines = [f"x = joined(level, join, {call.operands[0][0]}, {dim})", "if x is not None:", "    return x"]
        return made(_lines(*lines, call.by_rule()), function=rule.function, join=rule.joining)
    calls = {f"lead{i}": lead.call for i, lead in enumerate(rule.leading)}
    return made(_lines(*call.leading(rule.leading), call.by_rule()), function=rule.function, **calls)


def _method_of(function: Any) -> Any:
    """Return the method of BatchedTensor that does what a function of PyTorch does; the function where there is none."""
    name = getattr(function, "__name__", "")
    known = getattr(torch, name, None) is function and isinstance(getattr(Tensor, name, None), MethodDescriptorType)
    return getattr(BatchedTensor, name) if known else function


def _is_operand(a: Any) -> bool:
    return type(a) in (int, float, BatchedTensor)


class _Call:
    """The calls of one signature, and the lines for them.

    Attributes:
        operands: for each positional argument of the schema, the expression for it and what it is.
        options: for each keyword-only one, its name and the expression.
        lists: those expressions that are lists.
        is_simple: whether lines can be made.
    """

    def __init__(self, arrange: Arrange | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.lists: set[str] = set()
        sources = [("a", i) for i in range(len(args))] if arrange is None else arrange.positional
        renamed = [(name, name) for name in kwargs] if arrange is None else arrange.renamed
        self.operands = [self._operand(kind, at, args, kwargs) for kind, at in sources]
        self.options = [
            (name, self._operand("k" if isinstance(given, str) else "a", given, args, kwargs)[0])
            for name, given in renamed
        ]
        kinds = [kind for _, kind in self.operands]
        self.is_simple = None not in kinds and not has_tensor(
            [kwargs[given] for _, given in renamed if isinstance(given, str)]
        )

    def _operand(self, source: str, at: Any, args: Any, kwargs: Any) -> tuple[str, str | None]:
        if source == "d":
            return (repr(at), OTHER) if type(at) in (int, bool, str, type(None)) else ("", None)
        if source == "v":
            return f"args[{at}:]", _kind(args[at:])
        expression, value = (f"a{at}", args[at]) if source == "a" else (f"kwargs[{at!r}]", kwargs[at])
        if type(value) is list:
            self.lists.add(expression)
        return expression, _kind(value)

    def by_shape(self, views: bool) -> str:
        """What a rule did before with a tensor of this shape, or rank, is done again.

        Args:
            views: the result may be a view, of a tensor whose samples are laid out before.
        """
        (x, _), *others = self.operands
        key = [
            f"tuple({e})" if e in self.lists else e for e in (*(e for e, _ in others), *(e for _, e in self.options))
        ]
        return _lines(
            f"bdim = {x}._bdim",
            f"if {x}._level is level and bdim is not None:",
            *(
                [f"    if bdim and {x}._origin is None:", f"        lay_out({x})", f"        bdim = {x}._bdim"]
                if views
                else []
            ),
            f"    value = {x}._value",
            f"    key = {', '.join(['bdim', f'value.shape if known.sized else {x}._rank or value.ndim', *key])}",
            "    try:",
            "        found = known.get(key)",
            "    except TypeError:",  # a list in a list
            "        found = False",
            "    if found:",
            "        operation, method, to = found",
            "        try:",
            "            out = (method if level.depth and type(value) is BatchedTensor else operation)(value)",
            "            origin = None",
            *(
                ["            if bdim or to:", "                out, to, origin = seen(out, to, value)"]
                if views
                else ["            if bdim and not to:", "                out, to = settled(out, 0)"]
            ),
            *_returning("            ", "to", "origin"),
            "        except errors:",
            "            pass",  # to be told in the sample's terms; or there is another way
            "    elif found is None:",
            "        known.ask(level, value.shape, key, args, kwargs)",
        )

    def agreeing(self) -> str | None:
        """Operands of equal rank with the batch dim at one place broadcast and promote as the samples do."""
        batched = [e for e, k in self.operands if k == BATCHED]
        plain = [e for e, k in self.operands if k == PLAIN]
        if not batched or any(k == LIST for _, k in self.operands):
            return None
        if plain:
            return self._with_shared(batched, plain) if len(batched) == len(plain) == 1 else None
        x, *others = batched
        values = {e: f"v{i}" for i, e in enumerate(batched)}
        conditions = [f"{x}._level is level", "bdim is not None"]
        for y in others:
            conditions += [f"{y}._level is level", f"{y}._bdim == bdim"]
        body = [
            f"bdim = {x}._bdim",
            f"if {' and '.join(conditions)}:",
            *(f"    {v} = {e}._value" for e, v in values.items()),
        ]
        emit = f"out = {self._emit(values)}"
        if not others:
            return _lines(*body, f"    {emit}", *_returning("    ", "bdim", rank=f"{x}._rank"))
        ranks = [f"(r{i} := {e}._rank or rank_of({e}))" for i, e in enumerate(batched)]
        body += [  # a sample of one dim can lie in one way only
            f"    if {' == '.join(ranks)} and (not bdim or r0 <= 2 or lie_alike(({', '.join(values.values())}))):",
            f"        {emit}",
            *_returning("        ", "bdim", rank="r0"),
        ]
        if len(others) == 1:  # ones between the batch dim and the shorter operand's own
            body += [
                "    if not bdim and v0.dtype == v1.dtype:",
                "        if r0 == r1 + 1:",
                "            v1 = unsqueeze(v1, 1)",
                "        elif r0 != r1:",
                "            v0, v1 = padded(v0, v1, r0 - r1)",
                f"        {emit}",
                *_returning("        ", "0", rank="r0 if r0 > r1 else r1"),
            ]
            if [e for e, _ in self.operands] == ["a0", "a1"] == batched and not self.options:
                body += [
                    "else:",
                    "    x = beside_shared(level, emit, a0, a1)",
                    "    if x is not None:",
                    "        return x",
                ]
        return _lines(*body)

    def leading(self, leads: tuple[Leading, ...]) -> list[str]:
        """One tensor is batched, in front, and the operation takes leading dims there."""
        lines = []
        for i, lead in enumerate(leads):
            kinds = [k for _, k in self.operands]
            names = [e for e, _ in self.operands]
            fits = len(kinds) == len(lead.order) and kinds[lead.batched : lead.batched + 1] == [BATCHED]
            if not fits or self.options or any(k != PLAIN for j, k in enumerate(kinds) if j != lead.batched):
                continue
            x = names[lead.batched]
            conditions = [f"{x}._level is level", f"{x}._bdim == 0"]
            for name, (least, most) in zip(names, lead.ranks, strict=False):
                rank = f"(rank := {x}._rank or rank_of({x}))" if name == x else f"{name}.ndim"
                conditions.append(f"{rank} == {least}" if least == most else f"{least} <= {rank} <= {most}")
            given = ", ".join(f"{x}._value" if names[j] == x else names[j] for j in lead.order)
            lines += [
                f"if {' and '.join(conditions)}:",
                "    try:",
                f"        out = lead{i}({given})",
                *_returning("        ", "0", rank="rank" if lead.keeps_rank else "0"),
                "    except errors:",
                "        pass",  # to be told in the sample's terms; or there is another way
            ]
        return lines

    def _with_shared(self, batched: list[str], plain: list[str]) -> str:
        (x,), (y,) = batched, plain
        return _lines(
            f"if {x}._level is level and {x}._bdim == 0:",
            f"    v0 = {x}._value",
            f"    rank = {x}._rank or rank_of({x})",
            f"    if {y}.ndim < rank and {y}.dtype == v0.dtype:",
            f"        out = {self._emit({x: 'v0'})}",
            *_returning("        ", "0", rank="rank"),
        )

    def in_place(self, method: str) -> str:
        """An elementwise operation that writes to its first tensor, with a number or with a tensor of its like."""
        (x, _), (y, kind) = self.operands
        value = f"{y}._value" if kind == BATCHED else y
        alike = (
            f" and {y}._level is level and {y}._bdim == {x}._bdim and ({y}._rank or rank_of({y})) == ({x}._rank or rank_of({x}))"
            if kind == BATCHED
            else ""
        )
        return _lines(
            f"if {x}._level is level and {x}._bdim is not None:",
            f"    v0 = {x}._value",
            f"    if not v0.requires_grad{alike}:",  # a leaf may have to be given memory first
            "        if level.seen is None or level.seen:",
            f"            refuse_seen(level, {x}, {method!r})",
            f"        v0.{method}({value})",
            f"        return {x}",
        )

    def by_rule(self) -> str:
        """The rule on physical values: nothing to sort out."""
        batched = [e for e, k in self.operands if k == BATCHED]
        lists = [e for e, k in self.operands if k == LIST]
        values: dict[str, str] = {}
        dims: dict[str, str] = {}
        body: list[str] = []
        if len(batched) == 1 and not lists:
            (x,) = batched
            values[x], dims[x] = f"{x}._value", f"{x}._bdim"
            condition = f"{x}._level is level and {x}._bdim is not None"
        else:
            for i, e in enumerate(batched):
                values[e], dims[e] = f"v{i}", f"d{i}"
                body.append(f"v{i}, d{i} = ({e}._value, {e}._bdim) if {e}._level is level else ({e}, None)")
            for i, e in enumerate(lists):
                values[e], dims[e] = f"w{i}", f"e{i}"
                body.append(f"w{i}, e{i} = unlisted(level, {e})")
            condition = " or ".join([*(f"{dims[e]} is not None" for e in batched), *(dims[e] for e in lists)])
            if lists:  # all of them, or nothing: a list with a tensor that is shared goes the general way
                condition = " and ".join(dims[e] for e in lists)
        in_dims = "".join(f"{dims.get(e, None)}, " for e, _ in self.operands)
        return _lines(
            *body,
            f"if {condition}:",
            f"    out, bdim = function(level, ({in_dims}), {self._arguments(values)})",
            "    if type(bdim) is int:",
            f"        if not bdim and ({' or '.join([*(dims[e] for e in batched), *(f'any({dims[e]})' for e in lists)])}):",
            "            out, bdim = settled(out, 0)",
            *_returning("        ", "bdim"),
            "    return wrap(level, out, bdim)",
        )

    def _emit(self, values: dict[str, str]) -> str:
        """Return the call of the operation: of a tensor of an outer level by its method, which is that level's door."""
        arguments, first = self._arguments(values), self.operands[0][0]
        choice = (
            f"(method if level.depth and type({values[first]}) is BatchedTensor else emit)"
            if first in values
            else "emit"
        )
        return f"{choice}({arguments})"

    def _arguments(self, values: dict[str, str]) -> str:
        positional = [values.get(e, e) for e, _ in self.operands]
        return ", ".join([*positional, *(f"{name}={e}" for name, e in self.options)])


def _in_front(expression: str) -> list[str]:
    """Return lines for a tensor with the batch dim in front."""
    return [
        "if a0._level is level and a0._bdim == 0:",
        "    value = a0._value",
        "    try:",
        f"        out = {expression}",
        *_returning("        ", "0"),
        "    except errors:",
        "        pass",
    ]


def _kind(a: Any) -> str | None:
    """Tell what an argument is; None where it is a list of tensors of several kinds."""
    if type(a) is BatchedTensor:
        return BATCHED
    if isinstance(a, Tensor):
        return PLAIN
    if has_tensor((a,)):
        return LIST if type(a) in (list, tuple) and set(map(type, a)) == {BatchedTensor} else None
    return OTHER


def _returning(indent: str, bdim: str, origin: str = "None", rank: str = "0") -> list[str]:
    """Lines that wrap ``out``, as make_batched does, without a call."""
    lines = [
        "x = next(objects)",
        "x._value = out",
        f"x._bdim = {bdim}",
        "x._level = level",
        f"x._origin = {origin}",
        f"x._rank = {rank}",
        "return x",
    ]
    return [indent + line for line in lines]


def _lines(*lines: str) -> str:
    return "\n".join(lines)


SCOPE.update(
    objects=batched_objects, wrap=wrap, lay_out=lay_out, lie_alike=lie_alike, rank_of=rank_of, refuse_seen=refuse_seen, seen=seen,
    settled=settled, padded=padded, beside_shared=beside_shared, joined=joined, unlisted=unlisted, unsqueeze=torch.unsqueeze,
    select=torch.select, everything=slice(None), errors=(RuntimeError, IndexError),
)  # fmt: skip
