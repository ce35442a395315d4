"""Cases of one operator: batched inputs made from OpInfo's samples, and the ways to map over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

MODES = ("forward", "one_argument", "nested", "sizes", "inplace", "out", "gradient")


@dataclass
class Case:
    """One call to compare: a function of tensors, its batched tensors, and one in_dims a level, outermost first.

    Attributes:
        mode: one of `MODES`.
        function: takes the tensors of one sample, returns a list of tensors.
        tensors: physical tensors.
        levels: for each level the batch dim of every tensor, or None.
        label: what to print of it.
    """

    mode: str
    function: Callable[..., list[Any]]
    tensors: list[Tensor]
    levels: list[tuple[int | None, ...]]
    label: str


def rows(x: Tensor, count: int) -> list[Tensor]:
    """Return ``count`` tensors like ``x`` with other values that the operator still accepts.

    Floating values shrink a little: positive, bounded, triangular or positive definite ones stay so. Integers and
    bools change place: indices stay in range.
    """
    out = []
    for i in range(count):
        if x.dtype.is_floating_point or x.dtype.is_complex:
            out.append((x.detach() * (1 - 0.07 * i)).to(x.dtype))
        else:
            out.append(x.detach().flip(tuple(range(x.ndim))) if i % 2 and x.ndim else x.detach().clone())
    return out


def stacked(x: Tensor, count: int, dim: int) -> Tensor:
    """Return rows of ``x`` as one tensor with the batch dim at ``dim``."""
    if count == 0:
        shape = list(x.shape)
        shape.insert(dim % (x.ndim + 1), 0)
        return x.new_empty(shape)
    return torch.stack(rows(x, count), dim)


def tensors_only(out: Any) -> list[Any]:
    """Return the tensors of an output, in order."""
    return [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]


def _function(op: Callable[..., Any], spec: Any, leaves: list[Any], places: list[int]) -> Callable[..., list[Any]]:
    def function(*tensors: Any) -> list[Any]:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = tree_unflatten(filled, spec)
        return tensors_only(op(*args, **kwargs))

    return function


UNBOUND = {"exponential", "cauchy", "geometric", "log_normal", "uniform"}


def function_of(op: Any) -> Callable[..., Any]:
    """Return what an OpInfo entry tests, as users call it."""
    if op.name in UNBOUND or (op.name == "normal" and op.variant_test_name == "in_place"):
        return lambda x, *args, **kwargs: getattr(x, op.name + "_")(*args, **kwargs)
    if op.name == "item":
        return lambda x, *args, **kwargs: x.item()
    return bound(op.op)


def bound(op: Callable[..., Any]) -> Callable[..., Any]:
    """Call a method as users do, ``x.add_(y)``: the unbound ``Tensor.add_`` checks the type of its self in C++."""
    if type(op) in (type(torch.Tensor.add), type(torch.Tensor.__getitem__)):
        return lambda x, *args, **kwargs: getattr(x, op.__name__)(*args, **kwargs)
    return op


def _inplace(op: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, *args: Any, **kwargs: Any) -> Any:
        x = x.clone()
        result = op(x, *args, **kwargs)
        if result is not x and result is not None:
            raise AssertionError("an in-place operation must return self")
        return x

    return run


def _out(op: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        like = op(*args, **kwargs)
        if isinstance(like, Tensor):
            out = torch.empty(like.shape, dtype=like.dtype)
            result = op(*args, out=out, **kwargs)
            if result is not out:
                raise AssertionError("out= must be returned")
            return out
        outs = tuple(torch.empty(o.shape, dtype=o.dtype) for o in like)
        op(*args, out=outs, **kwargs)
        return outs

    return run


def cases(op: Any, dtype: torch.dtype, modes: tuple[str, ...], limit: int | None) -> Iterator[Case]:
    """Yield the cases of an OpInfo entry, from ``limit`` of its samples (None: all)."""
    torch.manual_seed(0)
    # as_strided reads memory: a sample that lies across the batch has other strides than the sample alone
    layout = op.name.startswith("as_strided") or op.name == "view_as_complex"
    for k, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=False)):
        if limit is not None and k >= limit:
            break
        leaves, spec = tree_flatten(((sample.input, *sample.args), dict(sample.kwargs)))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
        if not places:
            continue
        tensors = [leaves[i] for i in places]
        label = f"sample {k}: " + ", ".join(
            str(tuple(a.shape)) if isinstance(a, Tensor) else repr(a)[:40] for a in leaves
        )
        function = _function(function_of(op), spec, leaves, places)
        try:
            function(*tensors)
        except Exception:  # not for this device, or a sample of an error
            continue
        n = len(tensors)
        front, last = (0,) * n, tuple(t.ndim for t in tensors)
        batched = [stacked(t, 3, 0) for t in tensors]
        at_end = [stacked(t, 3, -1) for t in tensors]
        if "forward" in modes:
            yield Case("forward", function, batched, [front], label)
            if not layout:
                yield Case("forward", function, at_end, [last], label)
        if "one_argument" in modes and n > 1:
            for i in range(n):
                only = tuple(0 if j == i else None for j in range(n))
                yield Case("one_argument", function, [b if j == i else t for j, (b, t) in
                                                      enumerate(zip(batched, tensors, strict=True))], [only], label)  # fmt: skip
        if "sizes" in modes:
            for size in (0, 1):
                yield Case("sizes", function, [stacked(t, size, 0) for t in tensors], [front], label)
        if "nested" in modes and not layout:
            both = [torch.stack([stacked(r, 2, -1) for r in rows(t, 3)]) for t in tensors]
            yield Case("nested", function, both, [front, last], label)
            if n > 1:  # at different levels: the first inside, the others outside
                outer = (None, *(0,) * (n - 1))
                inner = (0, *(None,) * (n - 1))
                yield Case("nested", function, batched, [outer, inner], label)
        if (
            "inplace" in modes
            and op.inplace_variant is not None
            and isinstance(sample.input, Tensor)
            and not (sample.broadcasts_input)
        ):
            run = _function(_inplace(bound(op.inplace_variant)), spec, leaves, places)
            yield Case("inplace", run, batched, [front], label)
            if not layout:
                yield Case("inplace", run, at_end, [last], label)
        if "out" in modes and op.supports_out:
            run = _function(_out(function_of(op)), spec, leaves, places)
            yield Case("out", run, batched, [front], label)
        if "gradient" in modes and op.supports_autograd and any(t.is_floating_point() for t in tensors):
            yield Case("gradient", function, batched, [front], label)
            if not layout:
                yield Case("gradient", function, at_end, [last], label)
