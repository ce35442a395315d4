"""Short cuts: a rule specialised for the calls of one signature, as a few lines of Python that are made for it.

What a call has to find out step by step, its signature tells once: which arguments are batched tensors, which may be handed
on as they are, where each stands in the schema's order. So the lines look at levels and batch dims, and at nothing
else; a call that is not of the kind they are made for takes the general way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..levels import head
from ..levels.args import has_tensor, wrap
from ..levels.layout import lay_out, seen, settled
from ..levels.level import Level
from ..levels.sharing import refuse_seen
from ..levels.tensor import BatchedTensor
from ..rulekit.by_shape import learn
from ..rulekit.dims import lie_alike
from ..rulekit.rule import Rule
from ..torch_compat.operators import RANDOM, OpOverload, returns_view
from .binding import Arrange
from .plan import Run

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
    call = _Call(arrange, args, kwargs)
    kinds = [kind for _, kind in call.operands]
    if not call.is_simple:
        return general
    if rule.by_shape is not None and kinds[:1] == [BATCHED] and set(kinds[1:]) <= {OTHER}:
        views = op is None or returns_view(op)
        return _make(call.by_shape(views), general, known=_Known(rule.by_shape, arrange))
    if rule.kind != "physical" or op is None or returns_view(op):
        return general
    if rule.inplace_method is not None:
        fits = arrange is None and not kwargs and len(kinds) == 2 and kinds[0] == BATCHED
        return _make(call.in_place(rule.inplace_method), general) if fits and _is_operand(args[1]) else general
    if rule.agreeing is not None:
        text = call.agreeing()
        return general if text is None else _make(text, general, emit=rule.agreeing)
    if op._schema.is_mutable or rule.may_return_self or not {BATCHED, LIST} & set(kinds):
        return general
    return _make(call.by_rule(), general, function=rule.function)


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
        self.count = len(args)
        self.packed = False
        self.lists: set[str] = set()
        sources = [("a", i) for i in range(len(args))] if arrange is None else arrange.positional
        renamed = [(name, name) for name in kwargs] if arrange is None else arrange.renamed
        self.operands = [self._operand(kind, at, args, kwargs) for kind, at in sources]
        self.options = [(name, self._operand("k", given, args, kwargs)[0]) for name, given in renamed]
        kinds = [kind for _, kind in self.operands]
        self.is_simple = None not in kinds and not has_tensor([kwargs[given] for _, given in renamed])

    def _operand(self, source: str, at: Any, args: Any, kwargs: Any) -> tuple[str, str | None]:
        if source == "d":
            return (repr(at), OTHER) if type(at) in (int, bool, str, type(None)) else ("", None)
        if source == "v":
            self.packed = True
            return f"args[{at}:]", _kind(args[at:])
        expression, value = (f"a{at}", args[at]) if source == "a" else (f"kwargs[{at!r}]", kwargs[at])
        if type(value) is list:
            self.lists.add(expression)
        return expression, _kind(value)

    def lines(self, *body: str) -> str:
        """Return the function: the arguments by name, the body, and the general way."""
        unpack = f"{''.join(f'a{i}, ' for i in range(self.count))}= args"
        names = [] if self.packed or not self.count else [unpack]
        if self.packed:
            names = [f"a{i} = args[{i}]" for i in range(self.count) if any(e == f"a{i}" for e, _ in self.operands)]
        inner = "\n".join(f"        {line}" for line in (*names, *body, "return general(level, args, kwargs)"))
        return f"    def run(level, args, kwargs):\n{inner}\n    return run\n"

    def by_shape(self, views: bool) -> str:
        """What a rule did before with a tensor of this shape, or rank, is done again.

        Args:
            views: the result may be a view, of a tensor whose samples are laid out before.
        """
        (x, _), *others = self.operands
        key = [
            f"tuple({e})" if e in self.lists else e for e in (*(e for e, _ in others), *(e for _, e in self.options))
        ]
        return self.lines(
            f"bdim = {x}._bdim",
            f"if {x}._level is level and bdim is not None:",
            *(
                [f"    if bdim and {x}._origin is None:", f"        lay_out({x})", f"        bdim = {x}._bdim"]
                if views
                else []
            ),
            f"    value = {x}._value",
            f"    key = {', '.join(['bdim', 'value.shape if known.sized else value.ndim', *key])}",
            "    try:",
            "        found = known.get(key)",
            "    except TypeError:",  # a list in a list
            "        found = False",
            "    if found:",
            "        operation, to = found",
            "        try:",
            "            out, origin = operation(value), None",
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
        emit = f"out = emit({self._arguments(values)})"
        if not others:
            return self.lines(*body, f"    {emit}", *_returning("    ", "bdim"))
        same = " == ".join(f"{v}.ndim" for v in values.values())
        body += [
            f"    if {same} and (not bdim or lie_alike(({', '.join(values.values())}))):",
            f"        {emit}",
            *_returning("        ", "bdim"),
        ]
        if len(others) == 1:  # ones between the batch dim and the shorter operand's own
            body += [
                "    if not bdim and v0.dtype == v1.dtype:",
                "        if v0.ndim == v1.ndim + 1:",
                "            v1 = v1.unsqueeze(1)",
                "        else:",
                "            v0, v1 = padded(v0, v1)",
                f"        {emit}",
                *_returning("        ", "0"),
            ]
        return self.lines(*body)

    def _with_shared(self, batched: list[str], plain: list[str]) -> str:
        (x,), (y,) = batched, plain
        return self.lines(
            f"if {x}._level is level and {x}._bdim == 0:",
            f"    v0 = {x}._value",
            f"    if {y}.ndim < v0.ndim and {y}.dtype == v0.dtype:",
            f"        out = emit({self._arguments({x: 'v0'})})",
            *_returning("        ", "0"),
        )

    def in_place(self, method: str) -> str:
        """An elementwise operation that writes to its first tensor, with a number or with a tensor of its like."""
        (x, _), (y, kind) = self.operands
        value = f"{y}._value" if kind == BATCHED else y
        alike = (
            f" and {y}._level is level and {y}._bdim == {x}._bdim and {value}.ndim == v0.ndim"
            if kind == BATCHED
            else ""
        )
        return self.lines(
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
        return self.lines(
            *body,
            f"if {condition}:",
            f"    out, bdim = function(level, ({in_dims}), {self._arguments(values)})",
            "    if type(bdim) is int:",
            f"        if not bdim and ({' or '.join([*(dims[e] for e in batched), *(f'any({dims[e]})' for e in lists)])}):",
            "            out, bdim = settled(out, 0)",
            *_returning("        ", "bdim"),
            "    return wrap(level, out, bdim)",
        )

    def _arguments(self, values: dict[str, str]) -> str:
        positional = [values.get(e, e) for e, _ in self.operands]
        return ", ".join([*positional, *(f"{name}={e}" for name, e in self.options)])


def _kind(a: Any) -> str | None:
    """Tell what an argument is; None where it is a list of tensors of several kinds."""
    if type(a) is BatchedTensor:
        return BATCHED
    if isinstance(a, Tensor):
        return PLAIN
    if has_tensor((a,)):
        return LIST if type(a) in (list, tuple) and set(map(type, a)) == {BatchedTensor} else None
    return OTHER


def _returning(indent: str, bdim: str, origin: str = "None") -> list[str]:
    """Lines that wrap ``out``, as make_batched does, without a call."""
    lines = [
        "x = new(BatchedTensor, head)",
        "x._value = out",
        f"x._bdim = {bdim}",
        "x._level = level",
        f"x._origin = {origin}",
        "return x",
    ]
    return [indent + line for line in lines]


def _make(text: str, general: Run, **names: Any) -> Run:
    made: Run = _maker(text, tuple(names))(general, *names.values())
    return made


@functools.cache
def _maker(text: str, names: tuple[str, ...]) -> Callable[..., Run]:
    """Compile lines once for all the rules that they serve."""
    scope: dict[str, Any] = {
        "__name__": __name__, "BatchedTensor": BatchedTensor, "head": head.BATCHED, "new": head.new, "wrap": wrap,
        "lay_out": lay_out, "lie_alike": lie_alike, "refuse_seen": refuse_seen, "seen": seen, "settled": settled, "padded": _padded, "unlisted": _unlisted, "errors": (RuntimeError, IndexError),
    }  # fmt: skip
    exec(compile(f"def make({', '.join(('general', *names))}):\n{text}", "<vmap's short cut>", "exec"), scope)
    make: Callable[..., Run] = scope["make"]
    return make


def _padded(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Give the one of fewer dims as many, with ones behind the batch dim, which is in front."""
    more = a.ndim - b.ndim
    if more > 0:
        return a, b.reshape(b.shape[0], *(1,) * more, *b.shape[1:])
    return a.reshape(a.shape[0], *(1,) * -more, *a.shape[1:]), b


def _unlisted(level: Level, tensors: Any) -> tuple[Any, Any]:
    """Return the values and batch dims of tensors that are all batched at a level; else nothing."""
    values, dims = [], []
    for x in tensors:
        if x._level is not level or x._bdim is None:
            return None, None
        values.append(x._value)
        dims.append(x._bdim)
    return values, dims


class _Known:
    """What a rule that looks at nothing but shapes has done (see `vmap_core.rulekit.by_shape`).

    Attributes:
        sized: whether it looks at sizes; for most, the rank tells all.
        get: looks up what it did: the operation and the result's batch dim; False where there is no one operation, or the
            rule is to be run each time.
    """

    __slots__ = ("arrange", "found", "function", "get", "sized")

    def __init__(self, function: Callable[..., Any], arrange: Arrange | None) -> None:
        self.function, self.arrange = function, arrange
        self.found: dict[Any, Any] = {}
        self.get = self.found.get
        self.sized = False

    def ask(self, level: Level, shape: torch.Size, key: Any, args: Any, kwargs: Any) -> None:
        """Run the rule on a stand-in, and keep what it does, while there is room."""
        if len(self.found) >= ENTRIES:
            return
        given, rest = (args, kwargs) if self.arrange is None else self.arrange(args, kwargs)
        looked, found = learn(self.function, level, key[0], shape, given[1:], rest)
        if looked and not self.sized:
            self.found.clear()
            self.sized = True
        self.found[(key[0], shape if self.sized else len(shape), *key[2:])] = found or False


ENTRIES = 4096  # that one signature remembers
