"""`check`: a mapped call beside the Python loop over the batch."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import function_name, user_location
from ..levels import tree as _tree
from ..levels.containers import leaves, map_leaves
from ..levels.randomness import generators
from .difference import difference
from .names import kept, name_of
from .trace import Operation, recording


@dataclass(frozen=True)
class CheckReport:
    """Whether a mapped call equals the loop; true if it does. ``str(report)`` says where it first differs.

    Attributes:
        equal: whether outputs, what was written to the arguments, and gradients are equal.
        what: the difference in words.
        sample: the first sample that differs.
        operation: the first operation whose result differs, if the two runs could be compared step by step.
        values: False if the function drew numbers that differ by sample, so that only shapes and dtypes were compared.
    """

    name: str
    equal: bool
    what: str = ""
    sample: int | None = None
    operation: Operation | None = None
    values: bool = True

    def __bool__(self) -> bool:
        """Tell whether the two are equal."""
        return self.equal

    def __str__(self) -> str:
        """Say what was found."""
        if self.equal:
            how = "" if self.values else ", in shapes and dtypes; its values are random"
            return f"{self.name}: equals the loop over the batch{how}"
        lines = [f"{self.name}: differs from the loop over the batch", f"  {self.what}"]
        if self.operation is not None:
            o = self.operation
            lines.append(f"  first in {o.name}, called at {o.location}, served by {o.pack} ({o.rule or 'no rule'})")
        return "\n".join(lines)


@dataclass
class _Step:
    name: str
    location: str
    results: list[Tensor]


class _Steps(TorchFunctionMode):
    """Writes down what one sample's run calls."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in leaves(out) if isinstance(t, Tensor)]
        if tensors:
            self.steps.append(_Step(_plain(name_of(func)), user_location(), [kept(t, None)[0] for t in tensors]))
        return out


def check(vmapped: Callable[..., Any]) -> Callable[..., CheckReport]:
    """Check that a mapped function equals the Python loop over the batch on given arguments.

    Outputs are compared sample by sample in value, shape and dtype, and so is what was written to the arguments and,
    where an argument requires a gradient, the gradients. The arguments themselves stay as they are.

    Args:
        vmapped: what `vmap` returned.

    Returns:
        A function of the same arguments that returns a `CheckReport`: true if all is equal, and otherwise with the first
        sample and the first operation that differ.

    Raises:
        TypeError: the function is not one that `vmap` returned.

    Errors of the mapped call are raised as they are.

    Examples:
        >>> import torch
        >>> from vmap_core import check, vmap
        >>> report = check(vmap(torch.dot))(torch.randn(8, 3), torch.randn(8, 3))
        >>> bool(report)
        True
        >>> print(report)
        dot: equals the loop over the batch
    """
    if not hasattr(vmapped, "__vmap__"):
        raise TypeError(f"check: {function_name(vmapped)} is no function that vmap returned")
    func, in_dims, out_dims, randomness, axis_size, kw_in_dims = vmapped.__vmap__
    name = function_name(func)

    @functools.wraps(vmapped)
    def checked(*args: Any, **kwargs: Any) -> CheckReport:
        mapped_args, loop_args = _copy((args, kwargs)), _copy((args, kwargs))
        sources = [(g, g.get_state()) for g in generators((args, kwargs))]
        with recording(keep=True) as trace:
            out = vmapped(*mapped_args[0], **mapped_args[1])
        drew = any(not torch.equal(g.get_state(), state) for g, state in sources)
        values = not (drew and randomness == "different")
        rows, steps = [], []
        for i, (own_args, own_kwargs) in enumerate(_samples(in_dims, kw_in_dims, axis_size, *loop_args)):
            if randomness == "same":
                for g, state in sources:
                    g.set_state(state)
            with _Steps() as watched:
                try:
                    rows.append(func(*own_args, **own_kwargs))
                except Exception as error:
                    what = f"the loop raises {type(error).__name__} for sample {i}: {error}"
                    return CheckReport(name, False, what, i, None, values)
            steps.append(watched.steps)
        found = _compare_outputs(out, rows, out_dims, values)
        if found is None and values:
            found = _compare_arguments(mapped_args, loop_args) or _compare_gradients(mapped_args, loop_args, out, rows)
        if found is None:
            return CheckReport(name, True, values=values)
        sample, what = found
        culprit = _first_different(trace.operations, steps) if values else None
        return CheckReport(name, False, what, sample, culprit, values)

    return checked


def _copy(tree: Any) -> Any:
    """Copy the tensors of arguments; leaves that require gradients stay leaves that do."""

    def copied(leaf: Any) -> Any:
        return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf

    return map_leaves(copied, tree)


def _samples(in_dims: Any, kw_in_dims: Any, axis_size: int | None, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each sample's arguments: views, so that what is written to them is seen."""
    flat: list[Any] = []
    spec = _tree.flatten((args, kwargs), flat)
    arg_leaves: list[Any] = []
    dims = list(_tree.broadcast(in_dims, _tree.flatten(args, arg_leaves)) or ())
    for key, value in kwargs.items():
        own: list[Any] = []
        dims += _tree.broadcast(kw_in_dims.get(key), _tree.flatten(value, own)) or ()
    sizes = [leaf.shape[d] for leaf, d in zip(flat, dims, strict=True) if d is not None]
    for i in range(sizes[0] if sizes else axis_size or 0):
        row = [leaf if d is None else leaf.select(d, i) for leaf, d in zip(flat, dims, strict=True)]
        yield _tree.unflatten(spec, iter(row))


def _compare_outputs(out: Any, rows: list[Any], out_dims: Any, values: bool) -> tuple[int | None, str] | None:
    flat: list[Any] = []
    dims = _tree.broadcast(out_dims, _tree.flatten(out, flat)) or [out_dims] * len(flat)
    for i, row in enumerate(rows):
        own: list[Any] = []
        _tree.flatten(row, own)
        if len(own) != len(flat):
            return i, f"{len(flat)} outputs, but {len(own)} of sample {i} in the loop"
        for k, (x, d, expected) in enumerate(zip(flat, dims, own, strict=True)):
            where = f"output {k} of sample {i}" if len(flat) > 1 else f"sample {i}"
            if not isinstance(expected, Tensor):
                if not isinstance(x, Tensor) and x != expected:
                    return i, f"{where}: {x!r}, the loop gives {expected!r}"
                continue
            problem = _difference(x if d is None else x.select(d, i), expected, values)
            if problem:
                return i, f"{where}: {problem}"
    return None


def _compare_arguments(mapped: Any, looped: Any) -> tuple[int | None, str] | None:
    pairs = zip(leaves(mapped), leaves(looped), strict=True)
    for k, (x, expected) in enumerate(pairs):
        if isinstance(x, Tensor):
            problem = _difference(x, expected, True)
            if problem:
                return None, f"tensor {k} of the arguments, after the call: {problem}"
    return None


def _compare_gradients(mapped: Any, looped: Any, out: Any, rows: list[Any]) -> tuple[int | None, str] | None:
    def gradients(arguments: Any, outputs: Any) -> list[Tensor | None]:
        inputs = [t for t in leaves(arguments) if isinstance(t, Tensor) and t.requires_grad]
        tensors = [o for o in leaves(outputs) if isinstance(o, Tensor) and o.requires_grad]
        total: Any = sum((o.abs().square().sum() if o.is_complex() else (o * o).sum() + o.sum()) for o in tensors)
        return list(torch.autograd.grad(total, inputs, allow_unused=True)) if inputs and tensors else []

    for k, (x, expected) in enumerate(zip(gradients(mapped, out), gradients(looped, rows), strict=False)):
        if x is not None and expected is not None:
            problem = _difference(x, expected, True, 10)
            if problem:
                return None, f"gradient of tensor {k} of those that require one: {problem}"
        elif (x is None) != (expected is None) and (x if expected is None else expected).count_nonzero():  # type: ignore[union-attr]
            return None, f"gradient of tensor {k} of those that require one: only one of the two has it"
    return None


def _difference(x: Any, expected: Tensor, values: bool, slack: float = 1) -> str:
    if not isinstance(x, Tensor):
        return f"{x!r}, the loop gives a tensor"
    return difference([expected], [x], values=values, slack=slack).removeprefix("output 0: ")


def _first_different(operations: list[Operation], samples: list[list[_Step]]) -> Operation | None:
    """Return the first operation whose result differs from the loop's; the runs are aligned by the names of calls."""
    ours = [o for o in _outermost(operations) if o.results]
    best: int | None = None
    for i, steps in enumerate(samples):
        matcher = difflib.SequenceMatcher(None, [_plain(o.name) for o in ours], [s.name for s in steps], autojunk=False)
        for block in matcher.get_matching_blocks():
            for k in range(block.size):
                at = block.a + k
                if (best is None or at < best) and _differs(ours[at], steps[block.b + k], i):
                    best = at
                    break
    return None if best is None else ours[best]


def _differs(operation: Operation, step: _Step, i: int) -> bool:
    if len(operation.results) != len(step.results):
        return False
    for (x, bdim), expected in zip(operation.results, step.results, strict=True):
        mine = x if bdim is None else x.select(bdim, i)
        if _difference(mine, expected, True):
            return True
    return False


def _outermost(operations: list[Operation]) -> Iterator[Operation]:
    """Yield what is called at the outermost level: in the loop, an inner level's rules make the same calls."""
    base = min((o.depth for top in operations for _, o in top.walk()), default=0)
    for o in operations:
        if o.depth == base:
            yield o
        else:
            yield from _outermost_of(o, base)


def _outermost_of(o: Operation, base: int) -> Iterator[Operation]:
    for part in o.parts:
        if part.depth == base:
            yield part
        else:
            yield from _outermost_of(part, base)


def _plain(name: str) -> str:
    name = name.rpartition(".")[2].strip("_")
    return {"truediv": "div", "true_divide": "div", "floordiv": "floor_divide", "mod": "remainder"}.get(name, name)
