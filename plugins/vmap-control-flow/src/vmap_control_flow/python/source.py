"""The source of a function, as a syntax tree with the lines of its file."""

from __future__ import annotations

import ast
import functools
import linecache
from types import CodeType, FunctionType

Node = ast.FunctionDef | ast.Lambda


class NotSplitError(Exception):
    """A function, or a part of it, cannot be run by groups of samples; the text says why."""


def node_of(func: FunctionType) -> Node:
    """Return the definition of a function: a ``def`` or a lambda.

    Raises:
        NotSplitError: there is no source, or more than one function that it may be.
    """
    code = func.__code__
    text = "".join(linecache.getlines(code.co_filename, func.__globals__))
    if not text:
        raise NotSplitError("it has no source")
    found = [node for node in _functions(text) if _first_line(node) == code.co_firstlineno]
    if code.co_name == "<lambda>":
        found = [node for node in found if isinstance(node, ast.Lambda)]
        if len(found) > 1:
            found = [node for node in found if _column(node) == _first_column(code)]
    else:
        found = [node for node in found if isinstance(node, ast.FunctionDef) and node.name == code.co_name]
    if len(found) != 1:
        raise NotSplitError("its source was not found where it says that it is")
    return found[0]


@functools.lru_cache(maxsize=64)
def _functions(text: str) -> list[Node]:
    try:
        tree = ast.parse(text)
    except SyntaxError as e:
        raise NotSplitError("its file is no longer Python") from e
    return [node for node in ast.walk(tree) if isinstance(node, Node)]


def _first_line(node: Node) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return decorators[0].lineno if decorators else node.lineno


def _column(node: Node) -> int:
    return node.body.col_offset if isinstance(node, ast.Lambda) else node.col_offset


def _first_column(code: CodeType) -> int | None:
    """Return where the body of a lambda begins: its leftmost instruction on its first line."""
    columns = [(line, column) for line, _, column, _ in code.co_positions() if line and column]
    return min(columns)[1] if columns else None
