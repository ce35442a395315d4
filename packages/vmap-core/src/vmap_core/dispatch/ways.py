"""Ways to a plan: lines that look at the types of a call's arguments, and run it, or send it on to the next.

Note [A way is a line of questions]: the plan for a call hangs on its function and the types of its arguments. Most functions
are called with the same types again and again, and to ask for these takes Python less than to make a tuple of them, and to look
that up. So a function has the plans that were made last in a row, each behind its question, and the table behind all of
them. The lines of a short cut (`specialise`) stand behind theirs without a call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..levels.tensor import BatchedTensor
from .plan import Run

MOST = 4  # in a row

SCOPE: dict[str, Any] = {"__name__": __name__, "BatchedTensor": BatchedTensor}
"""What lines name, for all signatures."""


class Lines:
    """Lines that run calls of a signature, before they are compiled.

    Attributes:
        text: the lines. They have the arguments as ``a0``, ``a1``, ..., ``args`` and ``kwargs``, beside ``level``.
        names: what they name for this signature; ``general`` among them, which runs what they do not.
    """

    __slots__ = ("names", "text")

    def __init__(self, text: str, names: dict[str, Any]) -> None:
        self.text, self.names = text, names

    def run(self, count: int) -> Run:
        """Return the lines as a function of a level and a call with so many positional arguments."""
        made: Any = _compiled(f"{_unpacked(count)}\n{self.text}\n{_GENERAL}", tuple(self.names))(*self.names.values())
        made.lines = self
        return made  # type: ignore[no-any-return]


def way(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], otherwise: Run, general: Run | None = None) -> Run:
    """Return what runs calls with arguments of these types by a plan's run, and sends others on.

    Args:
        run: of the plan.
        args: arguments of these types.
        kwargs: keyword arguments of these types, and in this order.
        otherwise: the way so far; returned where there are many plans already.
        general: what runs calls that the run's lines do not, if not what they say.
    """
    length = getattr(otherwise, "length", 0) + 1
    if length > MOST:
        return otherwise
    lines: Lines = getattr(run, "lines", None) or Lines("pass", {"general": run})
    given = [
        *((f"a{i}", type(a)) for i, a in enumerate(args)),
        *((f"kwargs[{k!r}]", type(a)) for k, a in kwargs.items()),
    ]
    kinds = {f"type_{i}": kind for i, (_, kind) in enumerate(given) if kind is not BatchedTensor}
    conditions = [f"tuple(kwargs) == {tuple(kwargs)!r}" if kwargs else "not kwargs"]
    conditions += [
        f"type({a}) is {f'type_{i}' if f'type_{i}' in kinds else 'BatchedTensor'}" for i, (a, _) in enumerate(given)
    ]
    body = f"""\
try:
    {_unpacked(len(args))}
except ValueError:
    return otherwise(level, args, kwargs)
if {" and ".join(conditions)}:
{_indented(lines.text, 4)}
    {_GENERAL}
return otherwise(level, args, kwargs)"""
    names = {**lines.names, **kinds, "otherwise": otherwise}
    if general is not None:
        names["general"] = general
    made: Any = _compiled(body, tuple(names))(*names.values())
    made.length = length
    return made  # type: ignore[no-any-return]


_GENERAL = "return general(level, args, kwargs)"


def _unpacked(count: int) -> str:
    return f"{''.join(f'a{i}, ' for i in range(count)) or '() '}= args"


def _indented(text: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in text.split("\n"))


@functools.cache
def _compiled(body: str, names: tuple[str, ...]) -> Callable[..., Any]:
    """Compile lines once for all signatures that they serve."""
    text = f"def make({', '.join(names)}):\n    def run(level, args, kwargs):\n{_indented(body, 8)}\n    return run\n"
    scope = dict(SCOPE)
    exec(compile(text, "<vmap's short cut>", "exec"), scope)
    make: Callable[..., Any] = scope["make"]
    return make
