"""The mapped dim joins a dim that the kernel counts its entries along, so that one call serves all samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import BatchedTensor, Level, Rule, ensure_bdim, leaves, loop, to_front, unwrap, wrap

from ._torch import OpOverload


class _Instead:
    """A function in the place of an operator, under whose name it appears in warnings."""

    def __init__(self, op: OpOverload, function: Callable[..., Any]) -> None:
        self.op, self.function = op, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __str__(self) -> str:
        return str(self.op)


class Call:
    """The arguments of a call, by the names of the schema.

    Attributes:
        op: the overload.
        values: physical values; what was left out is not in here.
        dims: their batch dims.
    """

    def __init__(self, op: OpOverload, in_dims: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Take what a rule was given."""
        names = [a.name for a in op._schema.arguments]
        self.op = op
        self._args, self._kwargs = args, kwargs
        self.values = {**dict(zip(names, args, strict=False)), **kwargs}
        named = in_dims[len(args)] if len(in_dims) > len(args) else {}
        self.dims = {**dict(zip(names, in_dims[: len(args)], strict=False)), **named}

    def batched(self, name: str) -> bool:
        """Tell whether an argument, or an element of a list, is batched."""
        return any(d is not None for d in leaves(self.dims.get(name)))

    def front(self, name: str, size: int) -> Any:
        """Return a tensor with the batch dim first, expanded if it has none; None as it is."""
        value = self.values.get(name)
        return None if value is None else ensure_bdim(value, self.dims.get(name), size)

    def empty(self, name: str) -> Any:
        """Return what a tensor is in a batch of no samples; None as it is."""
        value, bdim = self.values.get(name), self.dims.get(name)
        return None if value is None else value.new_empty(0, *(n for d, n in enumerate(value.shape) if d != bdim))

    def run(self, /, **changes: Any) -> Any:
        """Call the operator with some arguments exchanged."""
        values = {**self.values, **changes}
        names = [a.name for a in self.op._schema.arguments]
        return self.op(*(values[n] for n in names[: len(self._args)]), **{n: values[n] for n in self._kwargs})

    def looped(self, info: Level, *, warn: bool = True, function: Callable[..., Any] | None = None) -> Any:
        """Run the operator, or a function in its place, once per sample."""

        def lay_out(name: str, value: Any) -> tuple[Any, Any]:
            dim = self.dims.get(name)
            if isinstance(dim, list | tuple):
                pairs = [(v, d) if d is None else (_dense(to_front(v, d)), 0) for v, d in zip(value, dim, strict=True)]
                return [v for v, _ in pairs], [d for _, d in pairs]
            return (value, None) if dim is None else (_dense(to_front(value, dim)), 0)

        laid = {name: lay_out(name, value) for name, value in self.values.items()}
        names = [a.name for a in self.op._schema.arguments][: len(self._args)]
        args, dims = [laid[n][0] for n in names], tuple(laid[n][1] for n in names)
        kwargs = {n: laid[n][0] for n in self._kwargs}
        named = {n: laid[n][1] for n in self._kwargs if n in self.dims}
        op = _Instead(self.op, function) if function else self.op
        return loop(info, op, (*dims, named) if named else dims, *args, warn=warn, **kwargs)


def contiguous(x: Tensor) -> Tensor:
    """Return ``x.contiguous()``, in a way that fake tensors also have on a machine without a GPU."""
    return x if x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)


def _dense(x: Tensor) -> Tensor:
    """Return samples, in front, whose rows or columns lie in memory one after the other."""
    sample = x.select(0, 0) if x.shape[0] else x
    columns = sample.ndim == 2 and sample.mT.is_contiguous()  # which some products demand
    return x if columns or sample.is_contiguous() else contiguous(x)


def merge_dims(info: Level, call: Call, dims: Mapping[str, int], /, **changes: Any) -> Any:
    """Call an operator once for all samples.

    Args:
        info: the level.
        call: the call.
        dims: the dim of each tensor that the mapped one joins, in front of it; None and what is left out need none.
        changes: other arguments to exchange.

    Returns:
        The outputs, still merged.
    """
    for name, dim in dims.items():
        x = call.front(name, info.batch_size)
        if x is not None:
            x = x.movedim(0, dim).flatten(dim, dim + 1)
            changes[name] = x if x.stride(-1) == 1 else contiguous(x)  # kernels want whole rows
    return call.run(**changes)


def split_dims(size: int, out: Any, dims: Any) -> tuple[Any, Any]:
    """Give outputs their batch dim again; those with None in ``dims`` are of the whole call, and no tensor has one."""
    if not isinstance(out, list | tuple):
        return (out.unflatten(dims, (size, out.shape[dims] // size)), dims) if isinstance(out, Tensor) else (out, None)
    dims = [d if isinstance(o, Tensor) else None for o, d in zip(out, dims, strict=True)]
    apart = [o if d is None else split_dims(size, o, d)[0] for o, d in zip(out, dims, strict=True)]
    return tuple(apart), tuple(dims)


def merged(
    *names: str, out: Any, counts: tuple[str, ...] = (), alone: tuple[str, ...] = (), draws: bool = False,
    state: tuple[str, ...] = (), prepare: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Callable[[OpOverload], Any]:  # fmt: skip
    """Make the family of operators whose tensors have N as their first dim, which the mapped dim joins.

    Note [Seeds are of the whole call]: with dropout, the kernel makes an element's number from a seed, an offset and
    the element's place in the call. Under ``randomness="different"`` there is one call, so its seed and offset are
    returned unbatched, tensors of the level. A backward call that gets them back is merged in the same way, and makes
    the same numbers from them. Under "same" there is one call a sample, from one random state, and one backward call a
    sample. So there is for seeds from outside the mapped function: they are those of calls on one sample.

    Args:
        names: the arguments with N, the output of the forward call (``out``) among them in a backward operator.
        out: the dim with N of each output; None for outputs of the whole call.
        counts: arguments that are N as a number.
        alone: optional arguments with which there is one call a sample: offsets of sequences that lie in one row.
        draws: whether the operator draws random numbers, where ``dropout_p`` is not zero.
        state: seeds and offsets that the forward call returned.
        prepare: what merged tensors have to go through.
    """
    dims = dict.fromkeys(names, 0)

    def family(op: OpOverload) -> Any:
        def merged(info: Level, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
            call = Call(op, in_dims, args, kwargs)
            if draws and call.values.get("dropout_p", 0):
                info.require_randomness(op)
                if info.randomness == "same":
                    return call.looped(info, warn=False)
            elif not any(map(call.batched, call.dims)):
                return call.run(), None
            return once(info, call)

        def backward(info: Level, *args: Any, **kwargs: Any) -> Any:
            values, in_dims, batched = unwrap(info, args)
            call = Call(op, in_dims, values, kwargs)
            if not batched:
                return wrap(info, call.run(), None)
            seeds = [a for a, s in zip(args, op._schema.arguments, strict=False) if s.name in state]
            if call.values["dropout_p"] and not (call.batched("out") and all(_of_one_call(info, s) for s in seeds)):
                # without the operator's own tag, which says that it draws: it draws again what is drawn already
                again = lambda *args, **kwargs: op(*args, **kwargs)  # noqa: E731
                return wrap(info, *call.looped(info, warn=info.randomness != "same", function=again))
            return wrap(info, *once(info, call))

        def once(info: Level, call: Call) -> Any:
            size = info.batch_size
            if not size:
                return call.looped(info, warn=False)
            others = [name for name in call.dims if call.batched(name) and name not in dims and name not in state]
            if others or any(_given(call.values.get(name)) for name in alone):
                return call.looped(info)
            changes: dict[str, Any] = {n: call.values[n] * size for n in counts}
            for name in state:  # without dropout they mean nothing, and any sample's will do
                if call.batched(name):
                    changes[name] = call.values[name].select(call.dims[name], 0)
            for name, function in (prepare or {}).items():
                if call.values.get(name) is not None:
                    changes[name] = function(call.front(name, size).flatten(0, 1))
            rest = {n: d for n, d in dims.items() if n not in changes}
            return split_dims(size, merge_dims(info, call, rest, **changes), out)

        return Rule(backward, "logical") if state else merged

    return family


def _of_one_call(info: Level, seed: Any) -> bool:
    """Tell whether a seed is that of a call for all samples of the level (see the note)."""
    return type(seed) is BatchedTensor and seed._level is info and seed._bdim is None


def _given(value: Any) -> bool:
    return value is not None and bool(value.numel())
