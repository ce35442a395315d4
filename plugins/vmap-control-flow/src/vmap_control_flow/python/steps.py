"""The steps of a function: what `lowering` makes, and the pieces of syntax that it makes them of."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MARK = "_vmap_step"
CALL, GET, SET, ITEM, ITER, NEXT, END, ENTER, CAUGHT, SLICE, AUGMENTED, CONTAINS = HELPERS = (
    "_vmap_call", "_vmap_get", "_vmap_set", "_vmap_item", "_vmap_iter", "_vmap_next", "_vmap_end", "_vmap_enter", "_vmap_caught",
    "_vmap_slice", "_vmap_augmented", "_vmap_contains",
)  # fmt: skip
SELF = "_vmap_self"  # fmt: skip


class Label:
    """A place in the list of steps that is jumped to."""

    step = -1


@dataclass
class Step:
    """One step.

    Attributes:
        kind: ``"do"`` a statement, ``"branch"`` by a variable's truth to the first or the second target, ``"jump"``, ``"return"``.
        node: the statement; of a branch or return the expression.
        targets: where it goes on.
        within: the variables that hold the contexts it runs in, outermost first.
        whole: why samples cannot part in it, if they cannot; "" else.
    """

    kind: str
    node: Any = None
    targets: tuple[Label, ...] = ()
    within: tuple[str, ...] = ()
    whole: str = ""


def loaded(name: str) -> Any:
    """Return the use of a variable."""
    return ast.Name(name, ast.Load())


def assigned(name: str, value: ast.expr) -> ast.stmt:
    """Return ``name = value``."""
    return ast.Assign([ast.Name(name, ast.Store())], value)


def called(name: str, *args: Any) -> ast.expr:
    """Return a call of a helper."""
    return ast.Call(loaded(name), list(args), [])


def slice_of(ends: Sequence[Any]) -> ast.expr:
    """Return a slice."""
    return called(SLICE, *(ast.Constant(None) if e is None else e for e in ends))
