"""The collectives of ``torch.distributed``: each sample does them in turn, so they are elementwise over the batch.

Every rank maps a function over a batch of the same size. A collective then runs once, for all samples: on physical
tensors that are contiguous, with the batch dim in front. On every rank it is the same, whatever a rank knows of its own
tensors: what one rank receives into (``torch.empty(3)``) may well not depend on the sample where what another one sends
does. So a tensor that all samples share is sent for each of them, as in the loop.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..dispatch.inplace import unrepeated
from ..errors import EscapedTensorError, UnsupportedError, user_location
from ..levels import ownership
from ..levels.args import any_batched, unwrap
from ..levels.containers import leaves, map_leaves
from ..levels.level import Level
from ..levels.read import every_sample, same
from ..levels.stack import below, current_levels
from ..levels.tensor import BatchedTensor
from ..rulekit.dims import ensure_bdim
from ..rulekit.rule import RulePack
from ..torch_compat.distributed import COLLECTIVES, Collective, group_named, is_coalescing
from ..torch_compat.operators import find

pack = RulePack("core.collectives")


def _rule(what: Collective, func: Callable[..., Any]) -> Callable[..., Any]:
    """Make the rule of a collective."""
    signature = inspect.signature(func)

    def rule(level: Level, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        tensors = {name: given[name] for name in what.tensors if given.get(name) is not None}
        ranks = torch.distributed.get_world_size(given.get("group"))
        if ranks < 0:  # this rank is not in the group, and does nothing
            return func(**given | dict(zip(tensors, unwrap(level, tuple(tensors.values()))[0], strict=True)))
        if is_coalescing(given.get("group")):
            raise UnsupportedError(
                f"vmap: {what.name} inside _coalescing_manager, at {user_location()}, in vmap of {level.name!r}. "
                f"Instead: call it by itself, or outside the mapped function."
            )
        if any_batched(level, tuple(tensors.values()), {}):
            for t in leaves([tensors.get(name) for name in what.writes]):
                if isinstance(t, Tensor):
                    ownership.promote(level, t, what.name)
        results = _Results(level, what, func, list(leaves([tensors.get(name) for name in what.reads])))
        with torch.no_grad():
            for name, value in tensors.items():
                splits = what.splits.get(name)
                flat = _Flat(what, name, ranks, given.get(splits)) if what.parts else None
                given[name] = map_leaves(results.physical(flat, name in what.writes), value)
                if flat is not None and given.get(splits):
                    given[splits] = [n * level.batch_size for n in flat.sizes]
        out = func(**given)
        if hasattr(out, "wait"):
            return Pending(level, out, results, given)
        results.write()
        return out

    return rule


class _Flat:
    """Tensors of a batch as one dim: first what all samples have for rank 0, then what they have for rank 1."""

    def __init__(self, what: Collective, name: str, ranks: int, splits: Any) -> None:
        self.what, self.name, self.splits = what, name, splits
        self.ranks = ranks if name in what.parts else 1
        self.sizes: list[int] = []

    def take_apart(self, x: Any) -> Any:
        """Bring a tensor (N, ...) into this form."""
        rows = x.reshape(x.shape[0], -1) if x.numel() else x.new_empty(x.shape[0], 0)
        self.shape, n = x.shape, rows.shape[1]
        first = x.shape[1] if x.dim() > 1 else 1
        if self.splits:
            if len(self.splits) != self.ranks or sum(self.splits) != first:
                raise RuntimeError(f"{self._about} do not add up to its dim 0 for {self.ranks} ranks: {self.splits}")
            self.sizes = [k * n // first if first else 0 for k in self.splits]
        else:
            if (first if self.name in self.what.splits else n) % self.ranks:
                raise RuntimeError(f"{self._about} are not equal for {self.ranks} ranks")
            self.sizes = [n // self.ranks] * self.ranks
        return torch.cat([part.reshape(-1) for part in rows.split(self.sizes, 1)])

    @property
    def _about(self) -> str:
        return f"{self.what.name}: the parts of {self.name}, of shape {list(self.shape[1:])},"

    def put_together(self, x: Any) -> Any:
        """Bring a tensor from this form back."""
        samples = self.shape[0]
        parts = [p.reshape(samples, k) for p, k in zip(x.split([k * samples for k in self.sizes]), self.sizes, strict=True)]
        return torch.cat(parts, 1).reshape(self.shape)


class _Results:
    """What a collective receives, where the tensors to be written to cannot take it as it comes.

    Attributes:
        pending: such a tensor, what it gets, and the form that this is in.
    """

    def __init__(self, level: Level, what: Collective, func: Any, read: list[Any]) -> None:
        self.level, self.what, self.func, self.read = level, what, func, read
        self.pending: list[tuple[Any, Any, _Flat | None]] = []

    def physical(self, flat: _Flat | None, written: bool) -> Callable[[Any], Any]:
        """Make what returns the physical tensor that the collective gets for one of the mapped function's."""

        def physical(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            (value,), (bdim,), _ = unwrap(self.level, (t,))
            x = ensure_bdim(value, bdim, self.level.batch_size)
            x = x.contiguous() if flat is None else flat.take_apart(x)
            if written and x is not value:
                self.pending.append((t, x, flat))
            return x

        return physical

    def write(self) -> None:
        """Write what came."""
        pending, self.pending = self.pending, []
        with torch.no_grad():
            for t, x, flat in pending:
                self._write(t, x if flat is None else flat.put_together(x))

    def _write(self, t: Any, rows: Any) -> None:
        level = self.level
        here = type(t) is BatchedTensor and t._level is level
        if not (here and t._bdim is not None):
            if bool(every_sample(same(rows, rows[:1])).all()):
                if not level.batch_size:
                    return
                once = self.what.repeatable or not any(ownership.same_storage(t, r) for r in self.read)
                with unrepeated(level, self.func, () if once else (t,)):
                    (t._value if here else t).copy_(rows[0])
                return
            ownership.promote(level, t, self.what.name)
        t._value.movedim(t._bdim, 0).copy_(rows)


class Pending:
    """The handle of a collective that goes on: ``wait()`` writes what came, so it belongs inside the mapped function."""

    def __init__(self, level: Level, work: Any, results: _Results, held: Any) -> None:
        """Wrap PyTorch's handle, and hold on to the tensors that it works on."""
        self._level, self._work, self._results, self._held = level, work, results, held

    def wait(self, *timeout: Any, **kwargs: Any) -> Any:
        """Wait, then write what came.

        Raises:
            EscapedTensorError: the mapped function has returned.
        """
        return self._inside("wait", timeout, kwargs, then=True)

    synchronize = wait

    def is_completed(self) -> bool:
        """Tell whether it has ended; what came is written then."""
        return bool(self._inside("is_completed" if hasattr(self._work, "is_completed") else "done", (), {}))

    def _inside(self, name: str, args: Any, kwargs: Any, then: bool = False) -> Any:
        if self._level not in current_levels():
            if self._results.pending:
                raise EscapedTensorError(
                    f"vmap: {name}() at {user_location()}, on the handle of {self._results.what.name}, where {self._level!r} is "
                    f"not active: what came cannot be written. Instead: call wait() inside the mapped function."
                )
            return getattr(self._work, name)(*args, **kwargs)
        with below(self._level):
            out = getattr(self._work, name)(*args, **kwargs)
            if then or out:
                self._results.write()
        return out

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._work, name)
        if self._results.pending and "source_rank" not in name:
            raise UnsupportedError(
                f"vmap: {name} of the handle of {self._results.what.name}, at {user_location()}, in vmap of "
                f"{self._level.name!r}. Instead: call wait(), or is_completed()."
            )
        return found


for _what in COLLECTIVES:
    if _what.function is not None:
        pack.add(_what.function, _rule(_what, _what.function), kind="logical")
