"""`graph`: a captured program as a CUDA graph, which one launch replays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from vmap_core import CaptureError, Program, capture

from ._graphed import Graphed

__all__ = ["graph", "graph_backend"]


def graph(
    func: Callable[..., Any], *example_args: Any, copy_outputs: bool = True, warmup: int = 3, **example_kwargs: Any
) -> Program:
    """Capture a function into a CUDA graph: all its kernels are launched at once.

    What a mapped function of small tensors costs on a GPU is the launch of each kernel, a few microseconds. A CUDA graph
    holds the kernels with their arguments, and replays them by one launch.

    A call copies the arguments into memory of the graph's own, replays, and returns clones of what the graph has
    computed. It holds for arguments of one kind, as every program does (see `vmap_core.capture`), and so raises for
    another shape, dtype or grad mode. Tensors from outside are read where they lie: what an optimizer writes to them is
    seen. What the function writes to them is written by each call. Random operations draw anew in each call, from the
    device's generator or from the ones among the arguments. Gradients flow to arguments and to tensors from outside,
    once (no double backward), by a second CUDA graph.

    Args:
        func: a function made by `vmap`, or one that calls such functions; or a program that `vmap_core.capture` returned.
        example_args: its arguments, on one CUDA device. Another function than a program is run once on them, truly;
            what more runs are needed leaves tensors and generators as that one did.
        copy_outputs: whether each call returns tensors of its own. Without, they are the graph's, and **the next call
            overwrites them**; gradients are the caller's in any case.
        warmup: runs before the capture, in which libraries allocate and kernels are compiled and tuned.
        example_kwargs: its keyword arguments.

    Returns:
        A program, to be called as the function.

    Raises:
        CaptureError: there is no CUDA device; a tensor is on another device; the function writes to an argument, waits
            for the device, or sets random state; or it cannot be captured at all. In a call: the arguments are not of
            the kind that was captured; a tensor from outside has other memory now; or a backward pass comes after a
            later call, which has overwritten what it needs.

    Example::

        step = vmap_cuda.graph(vmap(model), batch)  # batch: (8, 4), on a GPU
        out = step(batch)  # one launch

    Source: `torch.cuda.make_graphed_callables` and the notes on CUDA graphs in PyTorch's documentation,
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    if not torch.cuda.is_available():
        raise CaptureError(
            "vmap: vmap_cuda.graph needs a CUDA device, and PyTorch sees none. Instead: call the function, or the program "
            "that vmap_core.capture returns."
        )
    if warmup < 0:
        raise ValueError(f"graph: warmup must not be negative, got {warmup}")
    program = func if isinstance(func, Program) else capture(func, *example_args, **example_kwargs)
    backend = functools.partial(graph_backend, copy_outputs=copy_outputs, warmup=warmup)
    return program.run_by(backend, *example_args, **example_kwargs)


def graph_backend(
    graph_module: GraphModule, example_inputs: list[Any], *, copy_outputs: bool = True, warmup: int = 3
) -> Callable[..., Any]:
    """Capture straight-line operations into a CUDA graph; for ``vmap_core.compile(vmapped, backend=graph_backend)``.

    So each kind of arguments gets a CUDA graph when it first comes; `graph` makes one.

    Args:
        graph_module: the operations.
        example_inputs: its inputs, on one CUDA device.
        copy_outputs: as for `graph`.
        warmup: likewise.

    Returns:
        What replays the operations on other inputs, and returns the list of their outputs.

    Raises:
        CaptureError: they cannot be captured.
    """
    return Graphed(graph_module, example_inputs, copy_outputs, warmup)
