"""Views at places that differ from sample to sample: ``row = out[i]; row += v`` with a mapped number ``i``.

In the loop they are views. Here they are gathered, so what is gathered remembers from where: a write to it, or to a view
of it, is carried back to its base, and a write to the base is shown by it. Only a level that has such views looks at
writes: it goes on with plans of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InplaceError, user_location
from ..levels import ownership
from ..levels.args import any_batched
from ..levels.containers import leaves
from ..levels.entry import dispatch
from ..levels.layout import mapped, same_storage
from ..levels.level import Level, call
from ..levels.tensor import BatchedTensor, make_batched
from ..rulekit.rule import TableLike
from ..torch_compat.mode_stack import DisableTorchFunction, stack_size
from ..torch_compat.operators import OpOverload
from ..torch_compat.tensors import storage_use_count
from .binding import bind

aten = torch.ops.aten


class Gathered:
    """A view at places that differ from sample to sample.

    Attributes:
        base: what it is a view of.
        places: the index tensors for the base's dims; None where a dim is not indexed.
        own: what is gathered; what the mapped function has is a view of it.
        busy: whether it is being made equal to its base.
    """

    __slots__ = ("base", "busy", "own", "places")

    def __init__(self, base: Any, places: list[Any], own: BatchedTensor) -> None:
        self.base, self.places, self.own = base, places, own
        self.busy = False

    def is_seen(self) -> bool:
        """Tell whether anything else can see the memory; this decides only how long it is kept."""
        value = self.own._value
        while type(value) is BatchedTensor:
            value = value._value
        try:
            with DisableTorchFunction():
                storage = value.untyped_storage()
            return storage_use_count(storage._cdata) > 2  # our tensor, and `storage`
        except (RuntimeError, NotImplementedError):  # no storage
            return True

    def written(self, level: Level, target: Any) -> None:
        """Carry a write to this view to its base, or one to its base to this view."""
        if self.busy:
            return
        self.busy = True
        try:
            if same_storage(target, self.own):
                call(level, aten.index_put_.default, (self.base, self.places, self.own), {})
            elif same_storage(target, self.base):
                new = call(level, aten.index.Tensor, (self.base, self.places), {})
                call(level, aten.copy_.default, (self.own, new), {})
        finally:
            self.busy = False


def gathered(x: Any, places: list[Any]) -> Any:
    """Return what is at places of a tensor, as the view it is in the loop.

    Args:
        x: the tensor.
        places: index tensors as for ``aten.index``: one with one dim, or any number without dims.
    """
    return dispatch(gathered, (x, places)) if stack_size() else aten.index.Tensor(x, places)


def gathered_at(level: Level, x: Any, places: list[Any]) -> Any:
    """Do it at a level that is off the stack: at the innermost one where the places have a batch dim."""
    here = type(x) is BatchedTensor and x._level is level
    if any_batched(level, tuple(places), {}):
        places = [p if p is None else call(level, torch.clone, (p,), {}) for p in places]  # they may be written to
        out = call(level, aten.index.Tensor, (x, places), {})
        _remember(level, Gathered(call(level, aten.alias.default, (x,), {}), places, out))
        return make_batched(aten.alias.default(out._value), out._bdim, level)
    values = [p._value if type(p) is BatchedTensor and p._level is level else p for p in places]
    if not here:
        return gathered(x, values)
    bdim = x._bdim
    if bdim is None:
        return ownership.view(level, gathered(x._value, values), x, lambda: gathered_at(level, x, places))
    values.extend([None] * (bdim - len(values)))
    before = [p for p in values[:bdim] if p is not None]
    values.insert(bdim, None)
    return mapped(gathered(x._value, values), bdim - len(before) + sum(p.ndim for p in before), level)


def _remember(level: Level, view: Gathered) -> None:
    level.gathered = [*(v for v in level.gathered if v.is_seen()), view]
    if not isinstance(level.table, WatchingTable):
        level.table = WatchingTable.of(level.table)
        level.look_at_autocast()


class WatchingTable(TableLike):
    """A table like another one, whose plans tell gathered views what has been written."""

    def run_of(self, key: Any, run: Callable[..., Any], served: Any) -> Callable[..., Any]:
        """Watch what may write."""
        run = self.other.run_of(key, run, served)
        func = key
        while isinstance(func, tuple):
            func = func[1] if len(func) > 1 and getattr(func[0], "__name__", "") == "call_inherent" else func[0]
        if not _may_write(func, key):
            return run
        targets: Callable[..., list[Any]] | None = None

        def watched(level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal targets
            if targets is None:
                targets = _targets(func, args, kwargs)
            written = [t for t in leaves(targets(args, kwargs)) if isinstance(t, Tensor)]
            if len(written) > 1:
                _refuse_both(level, written)
            out = run(level, args, kwargs)
            for target in written:
                for view in level.gathered:
                    view.written(level, target)
            return out

        return watched


def _refuse_both(level: Level, written: list[Any]) -> None:
    """Raise if one call writes to a gathered view and to its base: neither would show what the other is given."""
    for view in level.gathered:
        if any(same_storage(t, view.own) for t in written) and any(same_storage(t, view.base) for t in written):
            raise InplaceError(
                f"vmap: one call at {user_location()}, in vmap of {level.name!r}, writes to a tensor and to a view of it "
                f"at an index that differs from sample to sample. Instead: write to them in two calls."
            )


def _may_write(func: Any, key: Any) -> bool:
    if isinstance(func, OpOverload):
        return bool(func._schema.is_mutable)
    if hasattr(func, "overloads"):  # an operator called as torch.ops.namespace.name
        return True
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name.startswith("__i") and name != "__invert__"
    return name.endswith("_") or any("out" in part for part in (key, *key) if isinstance(part, tuple))


def _targets(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., list[Any]]:
    """Return a function that finds, among the arguments of a call, those that are written to."""
    op, arrange = bind(func, args, kwargs) or (None, None)
    if op is None or not op._schema.is_mutable:
        return lambda args, kwargs: [kwargs.get("out"), args[0] if args and not kwargs.get("out") else None]
    writes = [(i, a.name) for i, a in enumerate(op._schema.arguments) if a.alias_info and a.alias_info.is_write]

    def targets(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if arrange is not None:
            args, kwargs = arrange(args, kwargs)
        return [args[i] if i < len(args) else kwargs.get(name) for i, name in writes]

    return targets
