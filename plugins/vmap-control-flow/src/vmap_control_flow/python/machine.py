"""Groups of samples on their way through a function: they part where their answers differ, and meet at the same step.

The group at the lowest step goes first, so that others can reach the step where they meet. A group is a level of its own; it has
its own variables, memory, lists and objects. What the mapped function still has from before they parted is written back at the end.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch

from vmap_core import InplaceError
from vmap_core.extend import (
    BatchedTensor,
    Level,
    located,
    promote,
    refuse_writes,
    rows_level,
    storage_of,
    user_location,
)

from .groups import Copy, Group, can_be_written, restored, values_in
from .parting import Part, Results, Returned
from .places import place_of, target_of
from .program import Program, with_code, with_free
from .structure import part_of, signature, together


class Machine:
    """Runs a program for all samples of a level, or of several, from a step at which they differ."""

    def __init__(
        self, program: Program, func: FunctionType, helpers: dict[str, Any], base: Level, shared: set[int]
    ) -> None:
        """Prepare it.

        Args:
            program: of the function.
            func: the function.
            helpers: what its steps call (see `calls`).
            base: the level of all samples.
            shared: the ids of objects that groups have in common.
        """
        self.program, self.func, self.helpers, self.base, self.shared = program, func, helpers, base, shared
        self.waiting: dict[int, list[Group]] = {}
        self.again: list[Group] = []  # have parted at a step, which they do again
        self.done: list[tuple[Group, Any]] = []
        self.alive: list[Any] = []  # so that ids stay those of what they name
        self.code: dict[Any, tuple[FunctionType, list[str], int]] = {}

    def run(self, step: int, variables: dict[str, Any], outer: list[Any], part: Part | None = None) -> Any:
        """Return what the function returns for all samples.

        Args:
            step: the first one.
            variables: their values there.
            outer: objects from around the function that groups have their own of; they are as these left them at the end.
            part: by what samples part at once.

        Raises:
            Results: groups return what cannot be one.
        """
        self.outer = outer
        first = Group(self.base, torch.arange(self.base.batch_size), step, variables, outer)
        if part is None:
            self.put(first)
        else:
            self.part_and_repeat(first, part)
        while self.waiting or self.again:
            if self.again:
                self.compute(self.again.pop())
                continue
            lowest = min(self.waiting)
            for group in self.met(self.waiting.pop(lowest)):
                self.go_on(group)
        return self.finished()

    def put(self, group: Group) -> None:
        """Let a group wait at its step."""
        steps = self.program.steps
        while steps[group.step].kind == "jump":
            group.step = steps[group.step].targets[0].step
        self.waiting.setdefault(group.step, []).append(group)

    def go_on(self, group: Group) -> None:
        """Run a group up to the next place where it can meet others or part."""
        step = self.program.steps[group.step]
        if step.kind == "return":
            self.done.append((group, self._value(step.node, group)))
        elif step.kind == "branch":
            answer = self._value(step.node, group)
            try:
                with group.level.pushed():
                    hit = bool(answer)
            except Part as part:
                for new in self.parts(group, part, lambda answer: step.targets[0 if answer else 1].step):
                    self.put(new)
            else:
                self.jump(group, step.targets[0 if hit else 1].step)
        else:
            self.compute(group)

    def jump(self, group: Group, step: int) -> None:
        """Send a group on to a step."""
        group.step = step
        self.put(group)

    def compute(self, group: Group) -> None:
        """Run the steps up to the next branch or meeting place."""
        live = self.program.live[group.step]
        missing = frozenset(live - group.variables.keys())
        key = (group.step, missing)
        found = self.code.get(key)
        if found is None:
            code, names, end = self.program.part(*key)
            found = self.code[key] = (with_code(code, self.func, self.helpers), names, end)
        run, names, end = found
        values = [group.variables[name] for name in names]
        try:
            run = with_free(run, group.outer[0])
            with group.level.pushed():
                variables = run(*values)
        except Exception as e:
            if group.level is not self.base:
                e._vmap_of_some = True  # type: ignore[attr-defined]
            raise
        except Part as part:
            group.step, group.variables = place_of(part, run, self.program)
            self.part_and_repeat(group, part)
        else:
            group.variables = variables
            self.jump(group, end)

    def parts(self, group: Group, part: Part, to: Callable[[Any], int]) -> Iterator[Group]:
        """Yield the samples of a group by their answers, at the step that each answer leads to."""
        if part.level is not group.level or part.rows is None:
            raise part.as_error("it depends on the samples of another vmap, which it did not at first") from None
        line = getattr(self.program.steps[group.step].node, "lineno", 0)
        for answer, rows in part.groups():
            with located(part.where or f"{self.program.file}:{line}"):
                new = self.narrowed(group, rows, to(answer), group.variables)
            yield new

    def part_and_repeat(self, group: Group, part: Part) -> None:
        """Let the samples of a group part at its step, which they do again; or which has returned what they go on with."""
        if isinstance(part, Results) and part.level is group.level:
            target = target_of(self.program.steps[group.step].node)
            for one in part.returned:
                self.put(self.narrowed(group, one.places, group.step + 1, group.variables, one, part.outer, target))
            return
        self.again += self.parts(group, part, lambda _: group.step)

    def narrowed(
        self, group: Group, rows: Any, step: int, variables: dict[str, Any],
        returned: Returned | None = None, outer: Sequence[Any] = (), target: str | None = None,
    ) -> Group:  # fmt: skip
        """Return some of the samples of a group as one.

        Args:
            group: the group.
            rows: which of its samples (n).
            step: where they go on.
            variables: the group's, by name.
            returned: what a function has returned for them.
            outer: the objects from around that function, in their former state.
            target: the variable that is to hold its result.
        """
        which = group.places.index_select(0, rows)
        level = self.level_of(which)
        known: dict[int, Any] = {}
        if returned is not None:
            of = {"value": returned.value, "": returned.outer}
            of, _ = part_of(of, returned.level, level, torch.arange(len(rows)), self.shared)
            known = {id(old): new for old, new in zip(outer, of[""], strict=True)}
            if target is not None:
                variables = {**variables, target: returned}
                known[id(returned)] = of["value"]
        variables = self.used(step, variables)
        new, became = part_of({**variables, "": group.outer}, group.level, level, rows, self.shared, known)
        copies = []
        for copy in group.copies:
            samples, places = copy.at(rows, group.level.batch_size)
            if samples is None:
                continue
            now = became.get(id(copy.now))
            if now is not None:
                copies.append(Copy(copy.of, now, samples, places, copy.written))
            elif copy.written:
                self.write_back(copy, rows)
        if group.level is self.base:
            for x in values_in(variables, group.outer, self.shared):
                now = became.get(id(x))
                if type(x) is BatchedTensor and now is not None and can_be_written(x):
                    copies.append(Copy(x, now, rows, None))
        out = Group(level, which, step, new, new.pop(""), copies)
        level.met = lambda x: self.met_outside(out, x)
        return out

    def used(self, step: int, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the variables that may be used from a step on."""
        live = self.program.live[step]
        return {name: x for name, x in variables.items() if name in live}

    def level_of(self, places: Any) -> Level:
        """Return a level for some of the samples."""
        return rows_level([self.base], [places])

    def met(self, groups: list[Group]) -> list[Group]:
        """Join the groups that wait at one step, as far as their variables can be one."""
        if len(groups) == 1:
            return groups
        alike: dict[Any, list[Group]] = {}
        for group in groups:
            group.variables = {**self.used(group.step, group.variables), "": group.outer}
            alike.setdefault(signature(group.variables, self.shared), []).append(group)
        return [self.joined(found) for found in alike.values()]

    def joined(self, groups: list[Group], loose: bool = False, kept: Kept | None = None) -> Group:
        """Return groups of one signature as one; their variables hold ``outer``, by the name "".

        Args:
            groups: the groups.
            loose: see `structure.signature`.
            kept: by id, what tensors of theirs are to be known by what they become, too.
        """
        if len(groups) == 1:
            groups[0].outer = groups[0].variables.pop("")
            return groups[0]
        places = torch.cat([g.places for g in groups])
        level = self.level_of(places)
        levels = [g.level for g in groups]
        variables, became = together([g.variables for g in groups], levels, level, self.shared, loose)
        for i, x in [(i, x) for new in became for i, x in new.items() if kept and i in kept]:
            assert kept is not None
            kept[id(x)] = [*kept.get(id(x), ()), *kept[i]]
        copies, start = [], 0
        whole: dict[tuple[int, int], list[Copy]] = {}
        for group, new in zip(groups, became, strict=True):
            every = torch.arange(start, start + group.level.batch_size)
            for copy in group.copies:
                now = new.get(id(copy.now))
                if now is not None:
                    at = every if copy.places is None else every[copy.places]
                    copies.append(Copy(copy.of, now, copy.samples, at, copy.written))
                    if copy.places is None:
                        whole.setdefault((id(copy.of), id(now)), []).append(copies[-1])
                elif copy.written:
                    self.write_back(copy)
            start += group.level.batch_size
        for found in whole.values():
            if len(found) == len(groups):  # all of them still are copies of one
                copies = [c for c in copies if not any(c is d for d in found)]
                first, written = found[0], any(c.was_written for c in found)
                copies.append(Copy(first.of, first.now, torch.cat([c.samples for c in found]), None, written))
        out = Group(level, places, groups[0].step, variables, variables.pop(""), copies)
        level.met = lambda x: self.met_outside(out, x)
        return out

    def met_outside(self, group: Group, x: Any) -> None:
        """Look at a tensor from before the groups parted that one of them has met, in an object or an outer function."""
        storage = storage_of(x)
        for copy in group.copies:
            if storage_of(copy.of) == storage:
                if copy.written:
                    raise InplaceError(
                        f"vmap: a tensor of logical shape {tuple(x.shape)}, used at {user_location()}, shares memory with one that samples "
                        f"which have parted have written to; what they wrote is not in it yet. Instead: write to a copy (clone())."
                    )
                refuse_writes(group.level, [copy.now])

    def write_back(self, copy: Copy, rows: Any = None) -> None:
        """Write to a tensor from before the groups parted what a group has written to its copy.

        Args:
            copy: the copy.
            rows: which of the group's samples; None for all.
        """
        x, now, samples, places = copy.of, copy.now, copy.samples, copy.places
        size = now._level.batch_size
        if rows is not None:
            samples, at = copy.at(rows, size)
            places = rows if at is None else rows[at]
        if x._bdim is None:
            promote(self.base, x, "a write to some of its samples")
        new = now._value.expand(size, *now._value.shape) if now._bdim is None else now._value.movedim(now._bdim, 0)
        if places is not None:
            new = new.index_select(0, places.to(new.device))
        value = x._value
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (value.requires_grad and value.is_leaf)):
            value.index_copy_(x._bdim, samples.to(value.device), new.movedim(0, x._bdim))

    def _value(self, node: ast.expr, group: Group) -> Any:
        if isinstance(node, ast.Name):
            return group.variables[node.id]
        assert isinstance(node, ast.Constant)
        return node.value

    def finished(self) -> Any:
        """Return the results of all samples."""
        groups = []
        for group, value in self.done:
            for copy in group.copies:
                if copy.written:
                    self.write_back(copy)
            if group.level is self.base:
                return value
            group.variables = {"value": value}
            groups.append(group)
        kept = self.kept(groups)
        for loose in (False, True):
            alike: dict[Any, list[Group]] = {}
            for group in groups:
                group.copies, group.variables[""] = [], group.outer
                alike.setdefault(signature(group.variables, self.shared, loose), []).append(group)
            groups = [self.joined(found, loose, kept) for found in alike.values()]
        if len(groups) > 1:
            refuse_writes(self.base, [copy.of for found in kept.values() for copy, _ in found])
            returned = [Returned(g.level, g.places, g.variables["value"], g.outer) for g in groups]
            raise Results(self.base, returned, self.outer, self.program.name)
        (group,) = groups
        variables = {"value": group.variables["value"], "": group.outer}
        size = self.base.batch_size
        same = {i: found[0][0].of for i, found in kept.items() if _is_one(found, size)}
        variables, became = part_of(variables, group.level, self.base, group.places.argsort(), self.shared, same)
        for i, found in kept.items():
            if i not in same and i in became:
                refuse_writes(self.base, [became[i], *(copy.of for copy, _ in found)])
        return (
            restored(variables["value"], self.outer, variables[""], self.shared) if self.outer else variables["value"]
        )

    def kept(self, groups: Sequence[Group]) -> Kept:
        """Return the tensors in results that share memory with copies, by id: in the loop they share it with those tensors.

        Where that is so for some samples only, neither can be written to: the other one would not see it.
        """
        found: Kept = {}
        for group in groups:
            by_storage: dict[Any, list[Copy]] = {}
            for copy in group.copies:
                by_storage.setdefault(storage_of(copy.now), []).append(copy)
            for x in values_in(group.variables, group.outer, self.shared) if by_storage else ():
                if isinstance(x, torch.Tensor):
                    copies = by_storage.get(storage_of(x), [])
                    found[id(x)] = [(c, True) for c in copies if c.now is x] or [(c, False) for c in copies]
            self.alive.append(group.variables)
        return {i: copies for i, copies in found.items() if copies}


def _is_one(found: Sequence[tuple[Copy, bool]], size: int) -> bool:
    """Tell whether a result is one tensor for all of so many samples."""
    of = found[0][0].of
    return all(exact and copy.of is of for copy, exact in found) and sum(len(copy.samples) for copy, _ in found) == size


Kept = dict[int, list[tuple[Copy, bool]]]
"""The copies that a tensor shares memory with, by its id, and whether it is the copy itself."""
