"""The Python values of a group's variables, when it parts and when it meets others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vmap_core.extend import BatchedTensor, Level

from .contents import ATOMS, changes, contents, fill, remade, shell_of
from .memory import classes, joined, layout_of, narrowed
from .numbers import PerSample, put_together


def tensors_in(values: Any, shared: set[int], seen: dict[int, Any]) -> None:
    """Collect the tensors and numbers in values, and whatever else is in them, by id.

    Args:
        values: some of them.
        shared: the ids of objects that are left as they are.
        seen: filled.
    """
    for x in values:
        if id(x) in seen or id(x) in shared or type(x) in ATOMS:
            continue
        found = contents(x) if not isinstance(x, torch.Tensor) else None
        if found is not None or isinstance(x, torch.Tensor) or type(x) is PerSample:
            seen[id(x)] = x
        if found is not None:
            tensors_in(found[1], shared, seen)


class Copier:
    """Makes the values of a group again for some of its samples."""

    def __init__(self, new: dict[int, Any], number: Callable[[PerSample], Any], shared: set[int]) -> None:
        """Take what tensors become, by id, what makes a number again, and the ids of what is left as it is."""
        self.memo, self.number, self.shared = dict(new), number, shared
        self.kept: list[Any] = []

    def __call__(self, x: Any) -> Any:
        """Return a value as it is to be."""
        kind = type(x)
        if kind in ATOMS or id(x) in self.shared:
            return x
        found = self.memo.get(id(x))
        if found is not None:
            return found
        if kind is PerSample:
            new = self.number(x)
        elif isinstance(x, torch.Tensor) or (inside := contents(x)) is None:
            return x
        else:
            new = shell_of(x)
            if new is not None:
                self.memo[id(x)] = new
                fill(new, x, [self(v) for v in inside[1]])
            else:
                values = [self(v) for v in inside[1]]
                same = not changes(x) and all(a is b for a, b in zip(values, inside[1], strict=True))
                new = x if same else remade(x, values)
        self.memo[id(x)] = new
        self.kept.append(x)  # so that its id stays its own
        return new


@torch.enable_grad()  # type: ignore[untyped-decorator]  # whatever the step is in: what is copied stays in its graph
def part_of(
    variables: dict[str, Any],
    level: Level,
    new: Level,
    rows: Any,
    shared: set[int],
    known: dict[int, Any] | None = None,
) -> tuple[dict[str, Any], dict[int, Any]]:
    """Return the variables of some of the samples of a group, and what its tensors have become, by id.

    Args:
        variables: by name.
        level: the group's.
        new: that of the samples.
        rows: which they are (n).
        shared: the ids of objects that are left as they are.
        known: what some objects are to be, by id.
    """
    seen: dict[int, Any] = {}
    tensors_in(variables.values(), shared, seen)
    of_level = [x for x in seen.values() if type(x) is BatchedTensor and x._level is level]
    memo: dict[int, Any] = {}
    for group in classes(of_level):
        memo.update(zip(map(id, group), narrowed(group, level, new, rows), strict=True))

    def number(k: PerSample) -> Any:
        return k.at(rows, new) if k.level is level else k

    copier = Copier({**memo, **(known or {})}, number, shared)
    return {name: copier(x) for name, x in variables.items()}, memo


def signature(variables: dict[str, Any], shared: set[int], loose: bool = False) -> Any:
    """Return what two groups have alike, by which their variables can be one: structure, sharing, shapes, layout, Python values.

    Args:
        variables: by name.
        shared: the ids of objects that are left as they are.
        loose: whether results are meant, of which nobody asks how they lie in memory.
    """
    order: dict[int, int] = {}
    storages: dict[int, int] = {}
    seen: dict[int, Any] = {}
    tensors_in(variables.values(), shared, seen)
    for n, group in enumerate(classes([x for x in seen.values() if isinstance(x, torch.Tensor)])):
        storages.update({id(x): n for x in group})

    def sign(x: Any) -> Any:
        kind = type(x)
        if kind is int or kind is float:
            return kind
        if kind in ATOMS:
            return kind, x
        if id(x) in shared:
            return id(x)
        if kind is PerSample:
            return x.kind
        if id(x) in order:
            return "again", order[id(x)]
        order[id(x)] = len(order)
        if isinstance(x, torch.Tensor):
            return (tuple(x.shape), x.dtype, x.device) if loose else (layout_of(x), storages[id(x)])
        inside = contents(x)
        return id(x) if inside is None else (*inside[0], *map(sign, inside[1]))

    return tuple((name, sign(x)) for name, x in sorted(variables.items()))


@torch.enable_grad()  # type: ignore[untyped-decorator]
def together(
    groups: Sequence[dict[str, Any]], levels: Sequence[Level], level: Level, shared: set[int], loose: bool = False
) -> tuple[dict[str, Any], list[dict[int, Any]]]:
    """Return the variables of several groups of one signature as those of all their samples; and what each one's tensors became.

    Args:
        groups: their variables.
        levels: of each.
        level: that of all samples, one group after the other.
        shared: the ids of objects that are left as they are.
        loose: see `signature`.
    """
    found: list[dict[int, Any]] = []
    for variables in groups:
        seen: dict[int, Any] = {}
        tensors_in((x for _, x in sorted(variables.items())), shared, seen)
        found.append(seen)
    tensors = [[x for x in seen.values() if isinstance(x, torch.Tensor)] for seen in found]
    columns = list(zip(*tensors, strict=True))  # of the groups' tensors, in the order of the first one's
    index = {id(column[0]): i for i, column in enumerate(columns)}
    memo: dict[int, Any] = {}
    for group in [[x] for x in tensors[0]] if loose else classes(tensors[0]):
        places = [index[id(x)] for x in group]
        parts = [[columns[i][g] for i in places] for g in range(len(groups))]
        memo.update(zip(map(id, group), joined(parts, levels, level, loose), strict=True))

    done: dict[int, Any] = {}

    def join(column: Sequence[Any]) -> Any:
        x = column[0]
        kind = type(x)
        if any(type(y) is PerSample for y in column) or kind is int or kind is float:
            return put_together(column, levels, level)
        if kind in ATOMS or id(x) in shared:
            return x
        if id(x) in memo:
            return memo[id(x)]
        if id(x) in done:
            return done[id(x)]
        inside = contents(x)
        if inside is None:
            return x
        lists = [inside[1], *(contents(y)[1] for y in column[1:])]  # type: ignore[index]
        new = shell_of(x)
        if new is not None:
            done[id(x)] = new
            fill(new, x, [join(c) for c in zip(*lists, strict=True)])
        else:
            new = remade(x, [join(c) for c in zip(*lists, strict=True)])
        done[id(x)] = new
        return new

    became = [{id(x): memo[id(column[0])] for x, column in zip(own, columns, strict=True)} for own in tensors]
    return {name: join([g[name] for g in groups]) for name in groups[0]}, became
