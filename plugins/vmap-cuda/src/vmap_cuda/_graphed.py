"""`Graphed`: straight-line operations in a CUDA graph, the memory it works on, and its gradients."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.fx import GraphModule

from vmap_core import CaptureError
from vmap_core.extend import without_autocast_cache

from ._on_device import OnDevice, refusal
from ._torch import dual_level, end_allocation, foreach_copy, transforms_active

DEVICE = "cuda"


class Graphed:
    """What takes the place of a graph module: the same operations on other inputs, by one launch.

    Attributes:
        forward: the CUDA graph.
        backward: the one of its gradients, if there are any.
        buffers: what the CUDA graph reads: memory of its own for arguments, that of captured tensors.
        outputs: what it writes.
        runs: how many times it has been replayed.
    """

    def __init__(self, graph_module: GraphModule, inputs: Sequence[Any], copy_outputs: bool, warmup: int) -> None:
        """Capture."""
        placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
        is_captured = [bool(node.meta.get("captured")) for node in placeholders]
        self.module, self.copy_outputs = graph_module, copy_outputs
        self.device = _device(inputs, [node.name for node in placeholders])
        self.generators = _generators(graph_module, self.device)
        self.buffers = [_alias(x) if c else _buffer(x) for x, c in zip(inputs, is_captured, strict=True)]
        self.arguments = [i for i, c in enumerate(is_captured) if not c]
        self.held = [(i, x.data_ptr()) for i, (x, c) in enumerate(zip(inputs, is_captured, strict=True)) if c]
        self.targets = [_distinct(self.buffers[i].detach()) for i in self.arguments]
        self.fills = [k for k, target in enumerate(self.targets) if target.numel()]
        self.lock, self.runs = threading.Lock(), 0
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.stream = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device), without_autocast_cache():
            self.written = self._warm_up(warmup, any(node.meta.get("impure") for node in graph_module.graph.nodes))
            self._capture()

    def _run(self) -> tuple[list[Tensor], list[Tensor]]:
        """Run the operations on the buffers, and return the outputs, and those of them that are differentiated."""
        outputs = list(self.module(*self.buffers))
        return outputs, [o for o in outputs if o.requires_grad]

    def _differentiate(self, outputs: list[Tensor], grads: list[Tensor]) -> tuple[Tensor | None, ...]:
        wanted = [b for b in self.buffers if b.requires_grad]
        # kept: a backward pass may be repeated, and must find what the forward one left
        return torch.autograd.grad(outputs, wanted, grads, allow_unused=True, retain_graph=True)

    def _warm_up(self, runs: int, writes: bool) -> list[int]:
        """Run on a side stream, the last time with checks; return which captured tensors are written to.

        Tensors made in inference mode do not tell: if anything is written, they may be.
        """
        side = torch.cuda.Stream(self.device)
        before = [_version(b) for b in self.buffers]
        values = {i: self.buffers[i].detach().clone() for i, _ in self.held} if writes else {}
        states = [g.get_state() for g in self.generators]
        side.wait_stream(self.stream)
        changed: list[int] = []
        try:
            with torch.cuda.stream(side):
                for run in range(runs + 1):
                    with OnDevice(self.device) if run == runs else contextlib.nullcontext():
                        outputs, tracked = self._run()
                        if tracked:
                            self._differentiate(tracked, [torch.zeros_like(o) for o in tracked])
        except RuntimeError as error:
            if isinstance(error, CaptureError | torch.OutOfMemoryError):
                raise
            # such as a write to a leaf, where the function has written to another tensor
            reason, _, _ = str(error).partition("\n")
            raise refusal(f"the function fails on tensors of the graph's own ({reason})") from error
        finally:
            self.stream.wait_stream(side)
            changed = [
                i for i, b in enumerate(self.buffers) if _version(b) != before[i] or (writes and b.is_inference())
            ]
            with torch.no_grad():
                for i in values.keys() & set(changed):
                    self.buffers[i].copy_(values[i])
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)
        if any(o.device != self.device for o in outputs):
            raise refusal(f"the function returns a tensor that is not on {self.device}")
        if set(changed) & set(self.arguments):
            raise refusal(
                "the function writes to an argument, of which the graph has a copy",
                "return the new value, or write to a tensor from outside",
            )
        return changed

    def _capture(self) -> None:
        self._register_generators(self.forward)
        side, pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.stream(side), warnings.catch_warnings():  # PyTorch leaves its stream on where it fails
                warnings.filterwarnings("ignore", ".*CUDA Graph is empty.*")  # an empty batch
                with torch.cuda.graph(self.forward, pool=pool, stream=side):
                    outputs, tracked = self._run()
                self.grad_outputs = [torch.zeros_like(o) for o in tracked]
                if tracked:
                    with torch.cuda.graph(self.backward, pool=pool, stream=side):
                        grads = self._differentiate(tracked, self.grad_outputs)
        except RuntimeError as error:
            cause = error.__context__ or error  # what made the capture fail, and not that it has
            self._abandon(pool)
            raise refusal(f"the function does what is not allowed while it is captured ({cause})") from error
        self.stream.wait_stream(side)
        self.tracked = [o.requires_grad for o in outputs]
        self.outputs = [o.detach() for o in outputs]
        self.grads: list[Tensor | None] = []
        if tracked:
            found = iter(grads)
            self.grads = [next(found) if b.requires_grad else None for b in self.buffers]

    def _register_generators(self, graph: torch.cuda.CUDAGraph) -> None:
        for generator in self.generators:
            if all(generator is not g for g in torch.cuda.default_generators):
                graph.register_generator_state(generator)

    def _abandon(self, pool: Any) -> None:
        """Undo what a failed capture leaves behind: PyTorch's allocator and generators would wait for its end.

        PyTorch itself does not, so that the next capture, and the next random number, would be errors. The allocator is
        told; generators are by another capture, of nothing.
        """
        with contextlib.suppress(RuntimeError):  # it knows, where only the function has failed
            end_allocation(self.device.index, pool)
        with contextlib.suppress(RuntimeError), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*CUDA Graph is empty.*")
            nothing, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
            self._register_generators(nothing)
            with torch.cuda.stream(side), torch.cuda.graph(nothing, stream=side):
                pass

    # replay

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Replay on other inputs."""
        if transforms_active() or _has_tangent(inputs):
            raise CaptureError(
                "vmap: a CUDA graph runs inside a transform of torch.func, or on dual tensors. Instead: call the function "
                "itself there, or make a graph of the transformed one."
            )
        if any(self.tracked):
            outputs: Sequence[Tensor] = _Replayed.apply(self, *inputs)
            return outputs
        return self.replay(inputs)

    @torch.no_grad()
    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Replay on other inputs; what is returned has no graph."""
        for i, pointer in self.held:
            if inputs[i].data_ptr() != pointer:
                raise CaptureError(
                    f"vmap: a tensor of shape {tuple(inputs[i].shape)} from outside has been given other memory since the "
                    f"CUDA graph was captured. Instead: write to it in place, or capture again."
                )
        if self.written:
            written = {_memory(inputs[i]) for i in self.written}
            if any(_memory(inputs[i]) in written for i in self.arguments):
                raise CaptureError(
                    "vmap: an argument shares its memory with a tensor that the CUDA graph writes to. Instead: pass a clone()."
                )
        with self._in_turn():
            if self.fills:
                sources = [_distinct(inputs[self.arguments[k]]) for k in self.fills]
                foreach_copy([self.targets[k] for k in self.fills], sources)
            self.forward.replay()
            self.runs += 1
            outputs = [o.clone() if self.copy_outputs else o.detach() for o in self.outputs]
        for i in self.written:
            if not inputs[i].is_inference():
                increment_version(inputs[i])
        return outputs

    def replay_backward(
        self, run: int, outside: Sequence[tuple[Tensor, int]], grads: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Return the gradients of the inputs in a run, if what that run has left and has read is still there.

        Args:
            run: which run it was.
            outside: the captured tensors with their versions after it.
            grads: the gradients of its outputs.
        """
        with self._in_turn():
            if run != self.runs:
                raise CaptureError(
                    "vmap: a backward pass needs what a CUDA graph has computed, and a later call of it has overwritten that. "
                    "Instead: go backward before the next call, or make a second graph."
                )
            if any(_version(x) != version for x, version in outside):
                raise CaptureError(
                    "vmap: a tensor from outside that a CUDA graph reads was written to between its call and the backward "
                    "pass. Instead: write to it afterwards."
                )
            for static, grad in zip(
                self.grad_outputs, (g for g, t in zip(grads, self.tracked, strict=True) if t), strict=True
            ):
                static.copy_(grad)
            self.backward.replay()
            return [None if g is None else g.clone() for g in self.grads]

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Keep threads and streams from using the buffers at once."""
        with self.lock:
            stream = torch.cuda.current_stream(self.device)
            if stream != self.stream:
                stream.wait_stream(self.stream)
                self.stream = stream
            yield


class _Replayed(torch.autograd.Function):
    """A replay, for autograd."""

    @staticmethod
    def forward(ctx: Any, graphed: Graphed, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = graphed.replay(inputs)
        ctx.graphed, ctx.run = graphed, graphed.runs
        ctx.outside = [(inputs[i], _version(inputs[i])) for i, _ in graphed.held]
        ctx.mark_non_differentiable(*(o for o, t in zip(outputs, graphed.tracked, strict=True) if not t))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise CaptureError(
                "vmap: the gradients of a CUDA graph cannot be differentiated (create_graph=True). Instead: call the function "
                "itself, or make a graph of one that takes the gradient inside."
            )
        return None, *ctx.graphed.replay_backward(ctx.run, ctx.outside, grads)


def _device(inputs: Sequence[Tensor], names: list[str]) -> torch.device:
    """Return the one device of the inputs."""
    for x, name in zip(inputs, names, strict=True):
        if x.device.type != DEVICE:
            raise refusal(f"{name} is a tensor on {x.device}", f"move it to the {DEVICE} device")
        if x.device != inputs[0].device:
            raise refusal(f"the tensors are on two devices, {inputs[0].device} and {x.device}")
    return inputs[0].device if inputs else torch.device(DEVICE, torch.cuda.current_device())


def _generators(graph_module: GraphModule, device: torch.device) -> list[Any]:
    """Return the generators that operations may draw from."""
    nodes = graph_module.graph.nodes
    given = {n: getattr(graph_module, n.target) for n in nodes if n.op == "get_attr"}
    given = {n: g for n, g in given.items() if isinstance(g, torch.Generator)}
    if any(n.op == "call_method" and n.args[0] in given for n in nodes if n.args):
        raise refusal("the function sets random state, as randomness='same' does in a loop")
    for generator in given.values():
        if generator.device != device:
            raise refusal(f"the function draws from a generator on {generator.device}")
    index = device.index or 0
    default = list(torch.cuda.default_generators[index : index + 1])
    return [*default, *(g for i, g in enumerate(given.values()) if all(g is not d for d in default))]


def _buffer(x: Tensor) -> Tensor:
    """Return memory of the same layout, with the same values."""
    with torch.inference_mode(False), torch.no_grad():
        made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        _distinct(made).copy_(_distinct(x))
        return made.requires_grad_(x.requires_grad)


def _alias(x: Tensor) -> Tensor:
    """Return the same memory as a leaf of its own: no hook is called on it."""
    return x.detach().requires_grad_(x.requires_grad)


def _distinct(x: Tensor) -> Tensor:
    """Return a view without the dims along which all elements are one."""
    for dim in reversed(range(x.ndim)):
        if x.stride(dim) == 0 and x.shape[dim] > 1:
            x = x.select(dim, 0)
    return x


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _has_tangent(inputs: Sequence[Tensor]) -> bool:
    forward_ad = torch.autograd.forward_ad
    return dual_level() >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in inputs)
