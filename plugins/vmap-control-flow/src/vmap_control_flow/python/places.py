"""Where in a function samples part, and whether they can there."""

from __future__ import annotations

import ast
from typing import Any

from .._torch import AT_ONCE
from .parting import Part, Results, place_in
from .program import Program
from .steps import MARK


def target_of(node: Any) -> str | None:
    """Return the variable that a step stores its result in; None if it drops it."""
    return node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None


def place_of(part: Part, run: Any, program: Program) -> tuple[int, dict[str, Any]]:
    """Return the step at which samples part, and the variables there.

    Raises:
        DataDependentError: they cannot part there.
    """
    trace = part.__traceback__
    while trace is not None and trace.tb_frame.f_code is not run.__code__:
        trace = trace.tb_next
    assert trace is not None
    variables = dict(trace.tb_frame.f_locals)
    step = variables.pop(MARK)
    why = program.refused or program.steps[step].whole or between(part, trace.tb_next)
    part.where, part.__traceback__ = place_in(part.__traceback__), None
    if why:
        raise part.as_error(f"{program.name}: {why}") from None
    return step, variables


_OWN = __name__.partition(".")[0]


def between(part: Part, trace: Any) -> str:
    """Say why a step cannot be run again for each group: code that it calls is half run. "" if it can."""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        ours = name.startswith(_OWN) or (name.partition(".")[0] == "vmap_core" and not isinstance(part, Results))
        if not ours and (name not in AT_ONCE or isinstance(part, Results)):
            code = trace.tb_frame.f_code
            return f"{code.co_name}, called there, cannot be run in steps"
        trace = trace.tb_next
    return ""
