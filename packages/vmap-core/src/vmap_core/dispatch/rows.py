"""Some of the samples of running levels as a level of their own: what runs a branch that only these samples take.

`rows_level` makes it; it runs while those are off the stack (`taken_off`). A tensor of one of those, wherever the branch has it from
(an argument, a closure, an object), is narrowed to the samples when an operation is given it. It is read and not written: a
write would reach a copy, so it is an `InplaceError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..levels.containers import LEAVES, map_leaves
from ..levels.layout import below_levels
from ..levels.level import Level
from ..levels.ownership import shared
from ..levels.pieces import remember
from ..levels.sharing import refuse_writes
from ..levels.tensor import BatchedTensor, make_batched
from ..rulekit.dims import ensure_bdim
from ..rulekit.rule import Table, TableLike
from ..torch_compat.mode_stack import pop_mode, push_mode
from .gathered import WatchingTable


def rows_level(levels: Sequence[Level], places: Sequence[Any]) -> Level:
    """Return a level for some of the samples of others.

    Args:
        levels: those on the stack that it stands for, outermost first; or that one of them stands for already.
        places: for each, which of its samples: integer tensors (n).
    """
    inner = levels[-1]
    level = Level(len(places[0]), inner.randomness, _narrowing(inner.table), inner.func)
    level.rows, level.narrowed, level.seen, level.part = Rows(zip(levels, places, strict=True)), {}, set(), inner.part
    return level


class Rows(dict[Level, Any]):
    """Which samples of other levels those of a level are: of the levels that it was made of, and of those that these stand for."""

    def __init__(self, own: Iterable[tuple[Level, Any]]) -> None:
        """Take the levels that it is made of, with the places."""
        super().__init__(own)
        self.further = [other for other in self if other.rows]

    def __contains__(self, level: object) -> bool:
        """Tell whether some of a level's samples are meant."""
        return super().__contains__(level) or any(level in other.rows for other in self.further)

    def __missing__(self, level: Level) -> Any:
        """Find out which samples of a level that another one stands for."""
        for other in self.further:
            if level in other.rows:
                self[level] = found = other.rows[level].index_select(0, self[other])
                return found
        raise KeyError(level)


class taken_off:
    """Runs a block with levels, outermost first, off the stack (see Note [Contexts that change the stack] in `levels.level`)."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self.levels = levels

    def __enter__(self) -> None:
        """Take them off."""
        for _ in self.levels:
            pop_mode()

    def __exit__(self, *exc: object) -> None:
        """Put them back."""
        for level in self.levels:
            push_mode(level)


def narrow(level: Level, x: Any) -> Any:
    """Return a tensor of a level that this one stands for as one of this level; anything else as it is."""
    if type(x) is not BatchedTensor or x._level is level or x._level not in level.rows:
        return x
    kept = level.narrowed.get(id(x))
    if kept is not None and kept[1] is x._value:
        return kept[2]
    value, dims = below_levels(x, level.rows)
    places = [level.rows[other] for other in dims]
    if not dims:
        return shared(level, value)
    if len(dims) == 1 and not value.requires_grad:
        (bdim,) = dims.values()
        value = value.index_select(bdim, *places)
    else:
        own, bdim = list(dims.values()), 0
        whole = value
        value = whole.permute(*own, *(d for d in range(whole.ndim) if d not in own))[tuple(places)]
        remember(value, whole, own, places)
    out = make_batched(value, bdim, level)
    refuse_writes(level, [out])
    if level.met is not None:
        level.met(x)
    level.narrowed[id(x)] = (x, x._value, out)  # x itself, so that its id stays its own
    return out


def rows_of(level: Level, x: Any) -> Any:
    """Return a tensor as the physical one of a level's samples, the batch dim in front."""
    x = narrow(level, x)
    value, bdim = (x._value, x._bdim) if type(x) is BatchedTensor and x._level is level else (x, None)
    return ensure_bdim(value, bdim, level.batch_size)


def _narrowing(table: Table) -> Table:
    while isinstance(table, WatchingTable):  # the level starts without gathered views
        table = table.other
    return table if isinstance(table, NarrowingTable) else NarrowingTable.of(table)


class NarrowingTable(TableLike):
    """A table like another one, whose plans narrow what they are given."""

    def run_of(self, key: Any, run: Callable[..., Any], served: Any) -> Callable[..., Any]:
        """Narrow the arguments first, where one is of another level or may hold one."""
        run = self.other.run_of(key, run, served)

        def narrowed(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            for a in (*args, *kwargs.values()):
                kind = type(a)
                if (kind is BatchedTensor and a._level is not level) or kind not in LEAVES:
                    args, kwargs = map_leaves(lambda x: narrow(level, x), (tuple(args), kwargs))
                    break
            return run(level, args, kwargs)

        return narrowed
