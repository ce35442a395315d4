"""The collectives of ``torch.distributed``: each sample does them in turn, so they are elementwise over the batch.

Every rank maps a function over a batch of the same size. A collective then runs once, for all samples: on physical
tensors that are contiguous, with the batch dim in front. On every rank it is the same, whatever a rank knows of its own
tensors: what one rank receives into (``torch.empty(3)``) may well not depend on the sample where what another one sends
does. So a tensor that all samples share is sent for each of them, as in the loop.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..dispatch.inplace import unrepeated
from ..errors import EscapedTensorError, UnsupportedError, user_location
from ..levels.args import any_batched, unwrap
from ..levels.containers import leaves, map_leaves
from ..levels.layout import same_storage
from ..levels.level import Level
from ..levels.ownership import promote
from ..levels.read import every_sample, same
from ..levels.stack import below, current_levels
from ..levels.tensor import BatchedTensor, make_batched
from ..rulekit.dims import ensure_bdim
from ..rulekit.rule import RulePack
from ..torch_compat.distributed import COLLECTIVES, Collective, functional, is_coalescing

pack = RulePack("core.collectives")


def _rule(what: Collective, func: Callable[..., Any]) -> Callable[..., Any]:
    """Make the rule of a collective."""
    signature = inspect.signature(func)

    def rule(level: Level, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        tensors = {name: given[name] for name in what.tensors if given.get(name) is not None}
        group = given.get("group")
        ranks = torch.distributed.get_world_size(group)
        if ranks < 0:  # this rank is not in the group, and does nothing
            return func(**given | dict(zip(tensors, unwrap(level, tuple(tensors.values()))[0], strict=True)))
        if is_coalescing(group):
            raise UnsupportedError(
                f"vmap: {what.name} inside _coalescing_manager, at {user_location()}, in vmap of {level.name!r}. "
                f"Instead: call it by itself, or outside the mapped function."
            )
        if any_batched(level, tuple(tensors.values()), {}):
            for t in leaves([tensors.get(name) for name in what.writes]):
                if isinstance(t, Tensor):
                    promote(level, t, what.name)
        results = _Results(level, what, func, list(leaves([tensors.get(name) for name in what.reads])))
        for name, value in tensors.items():
            splits = given.get(what.splits.get(name, ""))
            given[name] = map_leaves(functools.partial(results.physical, name, ranks, splits), value)
            if splits:
                step = given[name].numel() // max(sum(splits), 1)
                given[what.splits[name]] = [n * step for n in splits]
        out = func(**given)
        if hasattr(out, "wait"):
            return Pending(results, out, given)
        results.write()
        return out

    return rule


def _sizes(what: str, name: str, x: Any, ranks: int, splits: Sequence[int] | None, by_rows: bool) -> list[int]:
    """Return how many elements of one sample of a tensor (N, ...) are each rank's.

    Args:
        what: the collective, for the error.
        name: its argument.
        x: the tensor.
        ranks: how many there are.
        splits: how many rows are each rank's, where it is given.
        by_rows: each rank has whole rows.
    """
    first = x.shape[1] if x.dim() > 1 else 1
    count = math.prod(x.shape[1:])
    if splits:
        if len(splits) == ranks and sum(splits) == first:
            return [n * (count // max(first, 1)) for n in splits]
    elif (first if by_rows else count) % ranks == 0:
        return [count // ranks] * ranks
    raise RuntimeError(
        f"vmap: {what} at {user_location()}: {name}, of shape {list(x.shape[1:])}, does not divide into the parts of {ranks} "
        f"ranks{f', {list(splits)}' if splits else ''}"
    )


def _apart(x: Any, sizes: list[int]) -> Any:
    """Return a tensor (N, ...) as one dim: first what all samples have for rank 0, then what they have for rank 1."""
    rows = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    return torch.cat([part.reshape(-1) for part in rows.split(sizes, 1)])


def _together(x: Any, sizes: list[int], shape: Sequence[int]) -> Any:
    """Bring a tensor back from that form."""
    n = shape[0]
    parts = [part.reshape(n, size) for part, size in zip(x.split([n * s for s in sizes]), sizes, strict=True)]
    return torch.cat(parts, 1).reshape(shape)


class _Results:
    """What a collective receives, where the tensors to be written to cannot take it as it comes.

    Attributes:
        pending: such a tensor, what it gets, and how that becomes its physical one.
    """

    def __init__(self, level: Level, what: Collective, func: Any, read: list[Any]) -> None:
        self.level, self.what, self.func, self.read = level, what, func, read
        self.pending: list[tuple[Any, Any, Callable[[Any], Any]]] = []

    def physical(self, name: str, ranks: int, splits: Any, t: Any) -> Any:
        """Return the physical tensor that the collective gets for one of the mapped function's."""
        if not isinstance(t, Tensor):
            return t
        what, level = self.what, self.level
        (value,), (bdim,), _ = unwrap(level, (t,))
        with torch.no_grad():
            x = rows = ensure_bdim(value, bdim, level.batch_size)
            if what.parts:
                sizes = _sizes(what.name, name, x, ranks if name in what.parts else 1, splits, name in what.splits)
                x = _apart(x, sizes)
            else:
                x = x.contiguous()
        if name in what.writes and x is not value:
            self.pending.append((t, x, lambda x: _together(x, sizes, rows.shape) if what.parts else x))
        return x

    def write(self) -> None:
        """Write what came."""
        pending, self.pending = self.pending, []
        with torch.no_grad():
            for t, x, back in pending:
                self._write(t, back(x))

    def _write(self, t: Any, rows: Any) -> None:
        level = self.level
        here = type(t) is BatchedTensor and t._level is level
        if not here or t._bdim is None:
            if bool(every_sample(same(rows, rows[:1])).all()):  # one for all samples: it may stay so
                if not level.batch_size:
                    return
                again = self.what.repeatable or not any(same_storage(t, r) for r in self.read)
                with unrepeated(level, self.func, () if again else (t,)):
                    (t._value if here else t).copy_(rows[0])
                return
            promote(level, t, self.what.name)
        t._value.movedim(t._bdim, 0).copy_(rows)


class Pending:
    """The handle of a collective that goes on: ``wait()`` writes what came, so it belongs inside the mapped function."""

    def __init__(self, results: _Results, work: Any, held: Any) -> None:
        """Wrap PyTorch's handle, and hold on to the tensors that it works on."""
        self._results, self._work, self._held = results, work, held

    def wait(self, *timeout: Any, **kwargs: Any) -> Any:
        """Wait, then write what came.

        Raises:
            EscapedTensorError: the mapped function has returned.
        """
        return self._ask("wait", timeout, kwargs, ended=True)

    synchronize = wait

    def is_completed(self) -> bool:
        """Tell whether it has ended; what came is written then."""
        return bool(self._ask("is_completed" if hasattr(self._work, "is_completed") else "done"))

    def _ask(self, name: str, args: Any = (), kwargs: Any = None, ended: bool = False) -> Any:
        results = self._results
        if results.level in current_levels():
            with below(results.level):
                out = getattr(self._work, name)(*args, **kwargs or {})
                if ended or out:
                    results.write()
            return out
        if results.pending:
            raise EscapedTensorError(
                f"vmap: {name}() at {user_location()}, on the handle of {results.what.name}, where the {results.level!r} is "
                f"not active: what came cannot be written. Instead: call wait() inside the mapped function."
            )
        return getattr(self._work, name)(*args, **kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """Return what is asked of PyTorch's handle, unless that may be what came."""
        found = getattr(self._work, name)
        if self._results.pending and "source_rank" not in name:
            raise UnsupportedError(
                f"vmap: {name} of the handle of {self._results.what.name}, at {user_location()}, in vmap of "
                f"{self._results.level.name!r}. Instead: call wait(), or is_completed()."
            )
        return found


for _what in COLLECTIVES:
    if _what.function is not None:
        pack.add(_what.function, _rule(_what, _what.function), kind="logical")


# The operators of functional collectives: they return what comes, which is there before it has been waited for.


def _physical(level: Level, x: Any) -> Any:
    (value,), (bdim,), _ = unwrap(level, (x,))
    return ensure_bdim(value, bdim, level.batch_size)


def _elementwise(op: Any) -> Callable[..., Any]:
    def rule(level: Level, x: Any, *args: Any) -> Any:
        return make_batched(_wait(op(_physical(level, x).contiguous(), *args)), 0, level)

    return rule


def _of_parts(op: Any, name: str) -> Callable[..., Any]:
    def rule(level: Level, x: Any, *args: Any) -> Any:
        value = _physical(level, x)
        n, first, *rest = value.shape
        row = math.prod(rest)
        if name == "all_to_all_single":
            received, sent, group = args
            sent_sizes = _sizes(name, "input", value, len(sent), sent, True)
            sizes = [k * row for k in received]
            args = ([n * k for k in sizes], [n * k for k in sent_sizes], group)
            length = sum(received)
        else:
            ranks = args[-2]
            gathers = name == "all_gather_into_tensor"
            sent_sizes = _sizes(name, "input", value, 1 if gathers else ranks, None, True)
            sizes = [first * row] * ranks if gathers else [first // ranks * row]
            length = first * ranks if gathers else first // ranks
        out = _wait(op(_apart(value, sent_sizes), *args))
        return make_batched(_together(out, sizes, (n, length, *rest)), 0, level)

    return rule


def _wait(x: Any) -> Any:
    return torch.ops._c10d_functional.wait_tensor(x)


for _op in functional("all_reduce", "broadcast"):
    pack.add(_op, _elementwise(_op), kind="logical")
for _name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"):
    for _op in functional(_name):
        pack.add(_op, _of_parts(_op, _name), kind="logical")


def _there(level: Level, x: Any) -> Any:
    """Return a batched tensor, for which its rule has waited."""
    if type(x) is BatchedTensor and x._level is level:
        return x
    return _wait(x)


for _op in functional("wait_tensor"):
    pack.add(_op, _there, kind="logical")
pack.refuse(
    *functional(
        "all_reduce_coalesced", "all_reduce_coalesced_", "all_gather_into_tensor_coalesced", "all_gather_into_tensor_out",
        "reduce_scatter_tensor_coalesced", "reduce_scatter_tensor_out", "isend", "irecv", "batch_p2p_ops",
    ),
    reason="functional collectives on lists of batched tensors have no rule. Instead: call one for each tensor",
)  # fmt: skip
