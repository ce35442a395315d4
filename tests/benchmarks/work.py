"""Multiply-adds of derivatives beside torch.func's, and bytes alive at their peak beside code with the batch written in.

Both are counted, below vmap: products and convolutions, at the sizes at which they run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import vmap_autograd
from tests.benchmarks.gradients import (
    Classifier,
    cnn,
    layers,
    mlp,
    of_both,
    of_input,
    of_vectors,
    per_sample,
    residual,
    tangent_kernel,
)
from tests.benchmarks.timing import Run
from vmap_core import vmap
from vmap_core.dispatch.lowering import LoweredTensor
from vmap_core.transform.memory import Meter


class Counter(TorchDispatchMode):
    """Counts multiply-adds.

    Attributes:
        count: how many so far.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count."""
        if LoweredTensor in types:
            return NotImplemented
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.count += flop_registry[packet](*args, **kwargs, out_val=out) // 2
        elif packet in _MATRIX:
            self.count += args[_MATRIX[packet]].numel()
        return out


_MATRIX = {
    torch.ops.aten.mv: 0,
    torch.ops.aten.addmv: 1,
    torch.ops.aten.dot: 0,
}  # which argument has an element for each


def multiply_adds(run: Run) -> int:
    """Return how many a run makes, once everything is planned."""
    run()
    with Counter() as counter:
        run()
    return counter.count


def peak(run: Run) -> int:
    """Return the bytes that a run has alive at its peak."""
    run()
    with Meter() as meter:
        out = run()
    del out
    return meter.peak


def rows_beside_peer() -> dict[str, dict[str, Run]]:
    """Return what is counted beside torch.func."""
    torch.manual_seed(0)
    image = torch.randn(1, 16, 16)
    network = of_input(cnn())
    return {
        **of_vectors(),
        "NTK, width 16": tangent_kernel(16, 5, 4),
        "NTK, width 128": tangent_kernel(128, 12, 10),
        "PINN residual by grad": residual("grad"),
        "jacrev: CNN": of_both(lambda by, vmap: by.jacrev(network)(image)),
        "per-sample gradients: MLP": _without_loop(per_sample(mlp(), torch.randn(128, 64))),
        "per-sample gradients: CNN": _without_loop(per_sample(cnn(), torch.randn(32, 1, 16, 16))),
        "per-sample gradients: transformer": _without_loop(per_sample(Classifier(), torch.randint(50, (32, 16)))),
    }


def _without_loop(runs: dict[str, Run]) -> dict[str, Run]:
    return {name: run for name, run in runs.items() if name != "loop"}


@dataclass(frozen=True)
class Peak:
    """A derivative, and the same with the batch written in.

    Attributes:
        mapped: the first, given a size of chunks.
        by_hand: the second: those from one to another of the rows, or samples.
        count: how many of these there are.
        chunks: sizes of chunks to try.
    """

    mapped: Callable[[int | None], Any]
    by_hand: Callable[[int, int], tuple[Any, ...]]
    count: int
    chunks: tuple[int, ...]

    def peaks(self, size: int | None) -> tuple[int, int]:
        """Return the peaks of both, in chunks of a size."""
        return peak(lambda: self.mapped(size)), peak(lambda: self._by_hand(size))

    def _by_hand(self, size: int | None) -> Any:
        if size is None:
            return self.by_hand(0, self.count)
        whole: list[Any] = []
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)
            parts = self.by_hand(start, stop)
            whole = whole or [torch.empty(self.count, *part.shape[1:]) for part in parts]
            for memory, part in zip(whole, parts, strict=True):
                memory[start:stop] = part
        return whole


def peaks() -> dict[str, Peak]:
    """Return what is measured beside code with the batch written in."""
    torch.manual_seed(0)
    network, convolutions, small = layers(32, 64, 64, 32), cnn(), mlp()
    weights = [(m.weight.detach(), m.bias.detach()) for m in network if isinstance(m, nn.Linear)]
    x, image, data, labels = torch.randn(32), torch.randn(1, 16, 16), torch.randn(128, 64), torch.randint(10, (128,))
    f, g = of_input(network), of_input(convolutions)
    shared = {k: v.detach() for k, v in small.named_parameters()}

    def by_rows(start: int, stop: int) -> Any:
        hidden = [x]
        for w, b in weights:
            hidden.append(torch.tanh(F.linear(hidden[-1], w, b)))
        rows = torch.eye(32)[start:stop]
        for (w, _), h in zip(reversed(weights), reversed(hidden), strict=False):
            rows = (rows * (1 - h * h)) @ w
        return (rows,)

    def of_copies(start: int, stop: int) -> Any:
        copies = image.expand(stop - start, 1, 16, 16).clone().requires_grad_()
        layer = [m.requires_grad_(False) for m in convolutions]
        hidden = layer[4](layer[3](layer[2](layer[1](layer[0](copies)))))
        return torch.autograd.grad(layer[6](hidden.flatten(1)), copies, torch.eye(10)[start:stop])

    def hessian_of_copies(start: int, stop: int) -> Any:
        copies = x.expand(stop - start, 32).clone().requires_grad_()
        out = copies
        for w, b in weights:
            out = torch.tanh(F.linear(out, w, b))
        (first,) = torch.autograd.grad(out.square().sum(), copies, create_graph=True)
        return torch.autograd.grad(first, copies, torch.eye(32)[start:stop])

    def gradients_by_hand(start: int, stop: int) -> Any:
        hidden = F.linear(data[start:stop], shared["0.weight"], shared["0.bias"]).relu()
        back = F.linear(hidden, shared["2.weight"], shared["2.bias"]).softmax(1)
        back[torch.arange(stop - start), labels[start:stop]] -= 1
        last = back[:, :, None] * hidden[:, None]
        first = (back @ shared["2.weight"]) * (hidden > 0)
        return first[:, :, None] * data[start:stop, None], first, last, back

    def loss(params: Any, x: Any, y: Any) -> Any:
        return F.cross_entropy(functional_call(small, params, (x,)), y)

    def gradients(size: int | None) -> Any:
        mapped = vmap(vmap_autograd.grad(loss), in_dims=(None, 0, 0), chunk_size=size)
        return mapped(shared, data, labels)

    def square(x: Any) -> Tensor:
        out: Tensor = f(x).square().sum()
        return out

    return {
        "jacrev: MLP": Peak(lambda size: vmap_autograd.jacrev(f, chunk_size=size)(x), by_rows, 32, (8,)),
        "jacrev: CNN": Peak(lambda size: vmap_autograd.jacrev(g, chunk_size=size)(image), of_copies, 10, (2, 5)),
        "hessian: MLP": Peak(
            lambda size: vmap_autograd.hessian(square, chunk_size=size)(x), hessian_of_copies, 32, (8,)
        ),
        "per-sample gradients: MLP": Peak(gradients, gradients_by_hand, 128, (32, 100)),
    }


def measure() -> list[dict[str, Any]]:
    """Return the rows: multiply-adds beside torch.func, then peaks beside code by hand."""
    results: list[dict[str, Any]] = []
    for name, runs in rows_beside_peer().items():
        results.append({"row": f"{name}: multiply-adds", **{way: multiply_adds(run) for way, run in runs.items()}})
    for name, case in peaks().items():
        for size in (None, *case.chunks):
            chunk = "" if size is None else f", chunks of {size}"
            ours, by_hand = case.peaks(size)
            results.append({"row": f"{name}{chunk}: bytes at the peak", "by hand": by_hand, "ours": ours})
    return results
