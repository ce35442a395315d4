"""Faults: what may be changed in a source so that it is wrong, one place at a time."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPARED = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
COMPUTED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.FloorDiv: "*", ast.Mod: "+", ast.BitAnd: "|", ast.BitOr: "&"}
DROPPED = {"clone", "conj", "contiguous", "detach", "expand", "flatten", "movedim", "squeeze", "to", "unsqueeze"}
"""Methods that give a tensor like their own: the call is left out."""


@dataclass(frozen=True)
class Fault:
    """A change of a source.

    Attributes:
        file: the source.
        line: where it is.
        kind: what kind of change.
        old: the text that is replaced.
        new: the text in its place.
        start: where the text begins in the source, counted in bytes.
        function: whether it is in a function; else it is met when the module is imported.
    """

    file: Path
    line: int
    kind: str
    old: str
    new: str
    start: int
    function: bool

    def applied(self) -> bytes:
        """Return the source with the fault."""
        source = self.file.read_bytes()
        return source[: self.start] + self.new.encode() + source[self.start + len(self.old.encode()) :]

    def said(self) -> str:
        """Return the change in a line."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{old[:90]} -> {new[:90] or 'nothing'}"


def faults_of(file: Path) -> Iterator[Fault]:
    """Yield the faults that a source may have: not in its messages, its docstrings or its types."""
    source = file.read_bytes()
    lines = [0, *itertools.accumulate(len(line) + 1 for line in source.split(b"\n"))]

    def start(node: Any) -> int:
        return lines[node.lineno - 1] + int(node.col_offset)

    def text(node: Any) -> str:
        return source[start(node) : lines[node.end_lineno - 1] + node.end_col_offset].decode()

    def fault(node: Any, kind: str, new: str, inside: bool) -> Fault:
        return Fault(file, node.lineno, kind, text(node), new, start(node), inside)

    def walk(node: ast.AST, inside: bool) -> Iterator[Fault]:
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        for kind, new in _changes(node, text):
            yield fault(node, kind, new, inside)
        if isinstance(node, ast.Call):
            for k in node.keywords:
                left = [text(a) for a in (*node.args, *(other for other in node.keywords if other is not k))]
                if k.arg is not None:
                    yield fault(node, "keyword left out", f"{text(node.func)}({', '.join(left)})", inside)
        within = inside or isinstance(node, ast.FunctionDef | ast.Lambda)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, within)

    found = walk(ast.parse(source), inside=False)
    return (f for f in found if f.old != f.new)


def _changes(node: ast.AST, text: Callable[[ast.AST], str]) -> Iterator[tuple[str, str]]:
    """Yield kinds of changes of one node, and what stands there then."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        new = COMPARED[type(node.ops[0])]
        yield "comparison", f"{text(node.left)} {new} {text(node.comparators[0])}"
    elif isinstance(node, ast.BoolOp):
        word = " or " if isinstance(node.op, ast.And) else " and "
        yield "and, or", f"({word.join(f'({text(v)})' for v in node.values)})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not left out", f"bool({text(node.operand)})"
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        yield "arithmetic", f"(({text(node.left)}) {COMPUTED[type(node.op)]} ({text(node.right)}))"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "truth value", str(not node.value)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield "number", str(node.value + 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "aten")):
            yield "method left out", text(node.func.value)
    elif isinstance(node, ast.IfExp) and not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield "condition", f"({text(node.orelse)} if {text(node.test)} else {text(node.body)})"
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "statement left out", "pass"
    elif isinstance(node, ast.Assign) and _renewed(node):
        yield "statement left out", "pass"


def _renewed(node: ast.Assign) -> bool:
    """Tell whether an assignment gives names new values that are made of their own: ``x = x.reshape(-1)``."""
    made = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    used = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
    return bool(made) and made <= used
