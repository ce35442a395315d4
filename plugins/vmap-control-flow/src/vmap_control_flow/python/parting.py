"""What is raised where samples have different answers to a question that has one: they have to part there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vmap_core import CaptureError, DataDependentError
from vmap_core.errors import internal_modules
from vmap_core.extend import BatchedTensor, Level, current_recorder, located, make_batched, user_location


class Part(BaseException):
    """Samples have different answers. No ``Exception``, so that no ``except`` of the user's takes it for one.

    Attributes:
        level: the level whose samples differ.
        rows: their answers, a plain tensor (n) or a list; None where samples of a level further out differ, too.
        what: what asks.
        of: a tensor that depends on the levels which the answers depend on.
        where: the place in the user's code, once it has been caught.
    """

    where: str | None = None

    def __init__(
        self, level: Level, rows: Any, what: str, of: Any = None, error: Callable[[], Exception] | None = None
    ) -> None:
        super().__init__(what)
        self.level, self.rows, self.what, self._error = level, rows, what, error
        self.of = make_batched(torch.empty(level.batch_size), 0, level) if of is None else of

    @property
    def answers(self) -> list[Any]:
        """What each sample has."""
        return self.rows if isinstance(self.rows, list) else self.rows.tolist()

    def groups(self) -> list[tuple[Any, Any]]:
        """Return each answer, with the samples that have it (m)."""
        rows = self.rows
        if isinstance(rows, list):
            found: dict[Any, list[int]] = {}
            for i, answer in enumerate(rows):
                found.setdefault(key(answer), []).append(i)
            return [(rows[places[0]], torch.tensor(places)) for places in found.values()]
        if rows.dtype == torch.bool:
            return [(True, rows.nonzero().squeeze(1)), (False, rows.logical_not().nonzero().squeeze(1))]
        if rows.is_floating_point():
            rows = rows.contiguous().view(_BITS[rows.itemsize])
        _, code, counts = rows.unique(return_inverse=True, return_counts=True)
        parts = code.argsort(stable=True).split(counts.tolist())
        return [(self.rows[places[0]].item(), places) for places in parts]

    def as_error(self, why: str = "") -> Exception:
        """Return the error that it is where samples cannot part."""
        text = f"\n  Samples cannot part here (control_flow='split'): {why}." if why else ""
        with located(self.where or place_in(self.__traceback__)):
            if self._error is not None:
                error = self._error()
                return type(error)(f"{error}{text}") if text else error
            return DataDependentError(
                f"vmap: {self.what} differs from sample to sample, at {user_location()}, in vmap of {self.level.name!r}.{text}"
            )


def place_in(trace: Any) -> str | None:
    """Return ``file:line`` of the innermost frame of the user's in a traceback."""
    place = None
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if name not in internal_modules:
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def raise_part(x: Any, rows: Any, what: str, error: Callable[[], Exception]) -> None:
    """Let samples part: what a level is given as its ``part``.

    Args:
        x: the tensor that is asked, of the level whose samples differ.
        rows: their answers (n, *), a physical tensor.
        what: what asks.
        error: makes the error that it is where they cannot.

    Raises:
        Part: always, but for
        CaptureError: while a program is captured.
    """
    if current_recorder() is not None:
        raise CaptureError(
            f"vmap: a program cannot be captured: {what}, at {user_location()}, differs from sample to sample, and how many samples go each way is "
            f"another number in each call (control_flow='split'). Instead: torch.where, which computes both."
        )
    answers: Any = None
    if type(rows) is not BatchedTensor:
        answers = rows.detach().cpu().reshape(rows.shape[0], -1)
        answers = answers[:, 0] if answers.shape[1] == 1 else answers.tolist()
        if not isinstance(answers, list) and answers.is_complex():
            answers = answers.tolist()
    raise Part(x._level, answers, what, x, error)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Returned:
    """What a group of samples has returned.

    Attributes:
        level: the group's.
        places: which samples they are.
        value: the result.
        outer: what the objects from around the function have become.
    """

    level: Level
    places: Any
    value: Any
    outer: list[Any]


class Results(Part):
    """Groups of samples have returned what cannot be one: their caller's samples part.

    Attributes:
        returned: the groups' results.
        outer: the objects from around the function.
        fork: of the levels whose samples they are, where these are several.
    """

    fork: Any = None

    def __init__(self, level: Level, returned: Sequence[Returned], outer: list[Any], name: str) -> None:
        super().__init__(level, [], f"the structure, shape or type of what {name} returns")
        self.returned, self.outer = returned, outer


def key(answer: Any) -> Any:
    """Return what is the same where Python would see the same: 1, 1.0 and True are not, nor are 0.0 and -0.0."""
    if isinstance(answer, list | tuple):
        return (type(answer), *map(key, answer))
    return type(answer), repr(answer) if isinstance(answer, float | complex) else answer
