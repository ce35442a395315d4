"""Cases of one operator: batched inputs made from OpInfo's samples, and the ways to map over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from vmap_core.cli.opinfo import seeds_set_inside
from vmap_core.testing import Levels, batched, choices, nested_choices, strongest

from .derivatives import jvp, of_vectors, vjp

MODES = ("forward", "one_argument", "mixed", "nested", "sizes", "layout", "inplace", "out", "gradient", "vjp", "jvp",
         "vectors")  # fmt: skip


@dataclass
class Case:
    """One call to compare: a function of tensors, a sample of them, and one in_dims a level, outermost first.

    Attributes:
        mode: one of `MODES`.
        function: takes the tensors of one sample, returns a list of tensors.
        sample: tensors of one sample.
        levels: for each level the batch dim of every tensor, or None.
        sizes: the batch size of each level.
        strength: how the samples of the batch differ (see `vmap_core.testing.rows`).
        label: what to print of it.
        writes: the function writes to the memory of its first tensor.
    """

    mode: str
    function: Callable[..., list[Any]]
    sample: list[Tensor]
    levels: Levels
    sizes: tuple[int, ...]
    strength: str
    label: str
    writes: bool = False

    def tensors(self) -> list[Tensor]:
        """Return physical tensors."""
        return batched(self.sample, self.levels, self.sizes, self.strength)


def tensors_only(out: Any) -> list[Any]:
    """Return the tensors of an output, in order."""
    return [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]


def _function(op: Callable[..., Any], spec: Any, leaves: list[Any], places: list[int]) -> Callable[..., list[Any]]:
    def function(*tensors: Any) -> list[Any]:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = tree_unflatten(filled, spec)
        with seeds_set_inside():
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


def _laid_out(function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Return a function of the outputs and of what a program learns of their memory: strides, and whether they are contiguous."""

    def run(*tensors: Any) -> list[Any]:
        outputs = [o for o in function(*tensors) if o.layout == torch.strided]
        strides = ([s for n, s in zip(o.shape, o.stride(), strict=True) if n > 1 and o.numel()] for o in outputs)
        return [
            *outputs,
            *(torch.tensor([*steps, o.is_contiguous()]) for steps, o in zip(strides, outputs, strict=True)),
        ]

    return run


def cases(op: Any, dtype: torch.dtype, modes: tuple[str, ...], limit: int | None) -> Iterator[Case]:
    """Yield the cases of an OpInfo entry, from ``limit`` of its samples (None: all)."""
    torch.manual_seed(0)
    # these look at memory: a sample that lies across the batch has other strides than the sample alone
    layout = op.name.startswith("as_strided") or op.name == "view_as_complex"
    for k, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=False)):
        if limit is not None and k >= limit:
            break
        leaves, spec = tree_flatten(((sample.input, *sample.args), dict(sample.kwargs)))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
        if not places:
            continue
        tensors = [leaves[i].detach().clone() for i in places]
        function = _function(function_of(op), spec, leaves, places)
        strength = strongest(function, tensors)
        if strength is None:  # not for this device, or a sample of an error
            continue
        label = f"sample {k}: " + ", ".join(
            str(tuple(a.shape)) if isinstance(a, Tensor) else repr(a)[:40] for a in leaves
        )
        ranks = [t.ndim for t in tensors]
        if "vectors" in modes and op.supports_autograd:
            yield from _vector_cases(function, tensors, label)
        for mode, levels, sizes in plans(ranks):
            if mode not in modes or (layout and (mode == "layout" or any(dim for dims in levels for dim in dims))):
                continue
            run = function
            if mode == "inplace":
                taken = op.inplace_variant is not None and isinstance(sample.input, Tensor) and places[0] == 0
                if not taken or sample.broadcasts_input or any(dims[0] is None for dims in levels):
                    continue
                run = _function(_inplace(bound(op.inplace_variant)), spec, leaves, places)
            if mode == "out":
                if not op.supports_out:
                    continue
                run = _function(_out(function_of(op)), spec, leaves, places)
            if mode == "gradient" and not (op.supports_autograd and any(t.is_floating_point() for t in tensors)):
                continue
            if mode in ("vjp", "jvp"):
                supported = op.supports_autograd if mode == "vjp" else op.supports_forward_ad
                if not (supported and any(t.is_floating_point() for t in tensors)):
                    continue
                run = (vjp if mode == "vjp" else jvp)(function)
            if mode == "layout":
                run = _laid_out(function)
            writes = mode == "inplace" and not is_view(op.name + "_")
            yield Case(mode, run, tensors, levels, sizes, strength, label, writes)


def _vector_cases(function: Callable[..., list[Any]], tensors: list[Tensor], label: str) -> Iterator[Case]:
    shared = of_vectors(function, tensors)
    if shared is None:
        return
    run, vectors = shared
    front, last = (0,) * len(vectors), tuple(v.ndim for v in vectors)
    for levels, sizes in (([front], (3,)), ([last], (3,)), ([front, last], (2, 3)), ([front], (1,)), ([front], (0,))):
        yield Case("vectors", run, vectors, levels, sizes, "scaled", label)


def is_view(name: str) -> bool:
    """Tell whether an in-place operator changes no memory, only what its tensor shows: ``unsqueeze_``."""
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and torch.Tag.inplace_view in getattr(packet, packet.overloads()[0]).tags


def plans(ranks: list[int]) -> Iterator[tuple[str, Levels, tuple[int, ...]]]:
    """Yield modes, in_dims and batch sizes for tensors of these ranks."""
    n = len(ranks)
    front, last = (0,) * n, tuple(ranks)
    ends = list(dict.fromkeys([front, last]))
    for dims in choices(ranks):
        alone = dims.count(None) == n - 1 and n > 1
        mode = "forward" if dims in ends else "one_argument" if alone else "mixed"
        yield mode, [dims], (3,)
        if mode != "mixed":
            yield "gradient", [dims], (3,)
            yield "vjp", [dims], (3,)
            yield "jvp", [dims], (3,)
        yield "layout", [dims], (3,)
        if mode == "mixed" or dims in ends:
            yield "inplace", [dims], (3,)
            yield "out", [dims], (3,)
    for levels in nested_choices(ranks):
        yield "nested", levels, (3, 2)
    for mode in ("layout", "inplace", "out", "gradient", "vjp"):
        yield mode, [front, last], (2, 3)
    for dims in ends:
        for size in (0, 1):
            yield "sizes", [dims], (size,)
    yield "inplace", [front], (0,)
    yield "out", [front], (0,)
