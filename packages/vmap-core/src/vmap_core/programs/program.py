"""`Program`: a captured function, and the Python code that replays it."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from ..errors import CaptureError
from ..levels import tree
from ..levels.tensor import BatchedTensor
from ..torch_compat.eval_frame import graph_break
from ..torch_compat.fx_source import drop_source_with
from ..torch_compat.versions import FX_WRAPPING
from .backends import hand_over
from .recorder import Recorder
from .source import _Source
from .traits import ambient, captured_traits, traits, unpacker


class Program:
    """The operations of one run of a function, on other values: no vmap is left in it.

    Call it as the function. ``print`` shows its code.

    Attributes:
        graph_module: the operations as a ``torch.fx.GraphModule``; its inputs are the leaves of the arguments, then the
            captured tensors; its outputs, the tensors among the leaves of the result.
        captured: the tensors from outside that the function uses, by identity: what an optimizer writes to them is
            seen, and gradients reach them.
        name: what the function is called.
    """

    def __init__(self, recorder: Recorder, name: str, spec: Any, out_spec: Any, out_leaves: list[Any]) -> None:
        """Take over what has been recorded; `capture` does."""
        self.name = name
        self.captured = [x for x, _ in recorder.captured]
        self.check = recorder.check
        self.tensor_names = [f"x{i}" for i, x in enumerate(recorder.inputs) if isinstance(x, Tensor)]
        self.leaves = [None if isinstance(x, Tensor) else x for x in recorder.inputs]  # alive, as their ids are known
        self.spec = spec
        args_spec, kwargs_spec = spec[2]
        self.unpack = unpacker(spec)
        self.flat = not kwargs_spec[2] and all(child is None for child in args_spec[2])  # the leaves are the arguments
        self._traits = recorder.traits
        self._ambient = ambient()
        self.captured_traits = [captured_traits(x) for x in self.captured]
        self.out_spec = out_spec
        self.out_tensors = [i for i, o in enumerate(out_leaves) if isinstance(o, Tensor)]
        others = [None if isinstance(o, Tensor) else o for o in out_leaves]
        self.result = functools.partial(_result, out_spec, self.out_tensors, others)
        self.graph_module = drop_source_with(GraphModule(recorder.constants, recorder.graph, "Program"))
        self.graph_module.graph.owning_module = None  # a cycle: the program would go with the next collection only
        self._replay = self.bind(self.graph_module, None, self._misfit)

    def bind(
        self, run: Callable[..., Any], takes: list[int] | None, miss: Callable[..., Any], *first: Any
    ) -> Callable[..., Any]:
        """Return a function of the leaves that checks them and runs the graph.

        Args:
            run: the program's graph module, or what takes its place: a function that returns a sequence of tensors.
            takes: which of the leaves and captured tensors ``run`` takes; None for all.
            miss: a method, called with ``first`` and the leaves where the program does not fit them; its object is not kept.
            first: see there.
        """
        return _Source(self, run, takes, _weakly(miss, *first)).function()

    def captured_fit(self) -> bool:
        """Tell whether the captured tensors are still of the kind that was captured."""
        return [captured_traits(x) for x in self.captured] == self.captured_traits

    @graph_break
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay.

        Raises:
            CaptureError: the arguments, or PyTorch's state, are not of the kind that was captured.
        """
        if self.flat and not kwargs and len(args) == len(self.leaves):
            return self._replay(*args)
        return self._replay(*self._take_apart(args, kwargs))

    def run_by(self, backend: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Program:
        """Return a program for the same arguments and results, whose operations a backend runs.

        Args:
            backend: a backend of torch.compile, by name or as a function ``(graph_module, example_inputs) -> callable``.
                The inputs are tensors; the graph's placeholders of captured ones have a true ``meta["captured"]``.
            args: arguments as the program takes them, for the backend to look at.
            kwargs: keyword arguments, likewise.

        Raises:
            CaptureError: the arguments, or PyTorch's state, are not of the kind that was captured.

        Examples:
            >>> import torch
            >>> from vmap_core import capture, vmap
            >>> def show(graph_module, example_inputs):
            ...     return lambda *inputs: print("a call") or graph_module(*inputs)
            >>> x = torch.ones(4, 3)
            >>> capture(vmap(torch.sum), x).run_by(show, x)(2 * x)
            a call
            tensor([6., 6., 6., 6.])
        """
        leaves = list(self._take_apart(args, kwargs))
        if [*map(traits, leaves)] != self._traits or ambient() != self._ambient or not self.captured_fit():
            self._misfit(*leaves)
        other = copy.copy(self)
        other._replay = other.bind(*hand_over(self, backend, leaves), other._misfit)
        return other

    def _take_apart(self, args: Any, kwargs: Any) -> Any:
        """Return the leaves of arguments."""
        if self.flat and (kwargs or len(args) != len(self.leaves)):
            raise CaptureError(f"vmap: the program of {self.name} takes {len(self.leaves)} positional arguments.")
        leaves = self.unpack(args, kwargs)
        if leaves is None:
            raise CaptureError(
                f"vmap: the arguments have another structure than those that the program of {self.name} was captured "
                f"with. Instead: capture again, or use vmap_core.compile."
            )
        return leaves

    def _misfit(self, *leaves: Any) -> Any:
        """Say in what way arguments do not fit."""
        hint = "Instead: capture again, or use vmap_core.compile."
        head = f"vmap: the program of {self.name} was captured with"
        names = "shape", "strides", "dtype", "device", "requires_grad", "lazy conjugation"
        for i, (x, wanted) in enumerate(zip(leaves, self._traits, strict=True)):
            got = traits(x)
            if got != wanted:
                if len(got) != len(wanted) or not isinstance(x, Tensor):
                    raise CaptureError(f"{head} another value for leaf {i} of its arguments than {x!r}. {hint}")
                k = next(k for k in range(len(names)) if got[k] != wanted[k])
                raise CaptureError(f"{head} {names[k]} {wanted[k]} for leaf {i} of its arguments, not {got[k]}. {hint}")
        states = "grad mode", "inference mode", "default dtype", "autocast"
        for what, wanted, got in zip(states, self._ambient, ambient(), strict=True):
            if wanted != got:
                raise CaptureError(f"{head} {what} {wanted}, and is called with {got}. {hint}")
        if any(type(x) is BatchedTensor for x in leaves):
            raise CaptureError(
                f"vmap: the program of {self.name} is run by a backend, which takes no batched tensors. Instead: in a mapped "
                f"function, call the program that capture returned."
            )
        raise CaptureError(f"{head} captured tensors of another shape, dtype or requires_grad. {hint}")

    def __repr__(self) -> str:
        """Show the code."""
        lines = [f"# {self.name}"]
        for node in self.graph_module.graph.nodes:
            if node.op == "placeholder":
                lines.append(f"# {node.name}: {node.meta['kind']}")
        body = [line.partition("  #")[0].rstrip() for line in self.graph_module.code.strip().splitlines()]
        body = [line.partition(";  ")[0] for line in body if line.strip()]
        return "\n".join(lines + [line for line in body if not line.startswith(FX_WRAPPING)])


def _result(spec: Any, places: list[int], others: list[Any], tensors: Any) -> Any:
    """Return a graph's outputs as the function returns them."""
    leaves = list(others)
    for i, t in zip(places, tensors, strict=True):
        leaves[i] = t
    return tree.unflatten(spec, iter(leaves))


def _weakly(method: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    """Return a method without its object, whose part the caller is: so there is no cycle, and a program goes at once."""
    found = weakref.WeakMethod(method)
    return lambda *leaves: found()(*first, *leaves)  # type: ignore[misc]
