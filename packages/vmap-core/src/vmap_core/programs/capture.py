"""`capture`: from one run of a mapped function to its `Program`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import CaptureError, function_name
from ..levels import tree
from ..levels.stack import current_levels
from ..torch_compat import autocast
from ..torch_compat.eval_frame import graph_break
from ..torch_compat.functorch import transforms_active
from .program import Program
from .recorder import Recorder
from .simplify import simplify
from .watch import Calls, Kernels

__all__ = ["capture"]


@graph_break
def capture(vmapped: Callable[..., Any], *example_args: Any, **example_kwargs: Any) -> Program:
    """Run a function once and return the physical operations it made as a program.

    No vmap is left in the program: no level, no BatchedTensor, no rule that is looked up. It holds for arguments of the
    same structure, shapes, strides, dtypes, devices and ``requires_grad``, and for the same Python numbers, and raises
    for others; `compile` captures again for them.

    What Python does while the function runs is done once, now: prints, appends, branches, loops, what ``if self.training``
    chose. Tensors that the function uses from outside are taken by identity: writes to them are seen, another tensor
    under the same name is not. Random operations draw anew in every call of the program.

    Args:
        vmapped: a function made by `vmap`, or one that calls such functions.
        example_args: its arguments; the run is a real one, also in what it writes to them.
        example_kwargs: its keyword arguments.

    Raises:
        CaptureError: the function reads values of tensors, or does something else that a replay would not repeat.

    Examples:
        >>> import torch
        >>> from vmap_core import capture, vmap
        >>> program = capture(vmap(torch.dot), torch.ones(4, 3), torch.ones(4, 3))
        >>> program(torch.full((4, 3), 2.0), torch.ones(4, 3))
        tensor([6., 6., 6., 6.])
    """
    program, _ = record(vmapped, example_args, example_kwargs, strict=True)
    if isinstance(program, CaptureError):  # something has caught it on its way
        raise program
    return program


def record(func: Callable[..., Any], args: Any, kwargs: Any, strict: bool) -> tuple[Program | CaptureError, Any]:
    """Run a function and record it.

    Args:
        func: the function.
        args: its arguments.
        kwargs: its keyword arguments.
        strict: raise where it cannot be captured; else let the run go on.

    Returns:
        The program, or the CaptureError that says why there is none; and what the function returned.
    """
    recorder = Recorder(strict)
    leaves: list[Any] = []
    spec = tree.flatten((args, kwargs), leaves)
    unfit = _unfit(leaves)
    if unfit is not None:
        error = recorder.refusal(unfit)
        recorder.fail(error)
        return error, func(*args, **kwargs)
    names = _names(func, args, kwargs, leaves)
    aliases = [recorder.add_input(leaf, name) for leaf, name in zip(leaves, names, strict=True)]
    recorder.look_at_inputs()
    own_args, own_kwargs = tree.unflatten(spec, iter(aliases))
    with Kernels(recorder), Calls(recorder):
        out = func(*own_args, **own_kwargs)
    originals = {id(alias): leaf for alias, leaf in zip(aliases, leaves, strict=True)}
    out_leaves: list[Any] = []
    out_spec = tree.flatten(out, out_leaves)
    if recorder.failure is None:
        try:
            recorder.finish(out_leaves)
        except CaptureError as error:
            recorder.fail(error)
    out = tree.unflatten(out_spec, iter([originals.get(id(o), o) for o in out_leaves]))
    if recorder.failure is not None:
        return recorder.failure, out
    simplify(recorder.graph, torch.is_grad_enabled(), autocast.state())
    recorder.drop_unused()
    return Program(recorder, function_name(func), spec, out_spec, out_leaves), out


def _unfit(leaves: list[Any]) -> str | None:
    """Say why a run with these leaves as arguments cannot be recorded here, if it cannot."""
    if current_levels() or transforms_active():
        return "it would be one inside a mapped function or a transform of torch.func"
    for leaf in leaves:
        if isinstance(leaf, Tensor) and (
            type(leaf) not in (Tensor, torch.nn.Parameter) or leaf.layout != torch.strided
        ):
            return f"an argument is a {type(leaf).__name__}, {leaf.layout}"
    return None


def _names(func: Any, args: Any, kwargs: Any, leaves: list[Any]) -> list[str]:
    """Return the names of the leaves: those of the function's parameters, where each is one."""
    try:
        parameters = list(inspect.signature(func).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        parameters = []
    if len(parameters) != len(leaves):
        parameters = [f"arg_{i}" for i in range(len(leaves))]
    return parameters
