"""Layers beside torch.func, code that has the batch written in, and the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from tests.benchmarks.timing import Row, Run
from vmap_core import vmap
from vmap_nn import Ensemble


def mapped(sample: Callable[..., Any], dims: Any, args: tuple[Any, ...], by_hand: Run, loop: Run) -> dict[str, Run]:
    """Return the four ways to run a function of one sample."""
    ours, peer = vmap(sample, in_dims=dims), torch.vmap(sample, in_dims=dims)
    return {"ours": lambda: ours(*args), "torch.func": lambda: peer(*args), "by hand": by_hand, "loop": loop}


def shared(module: nn.Module, x: Tensor, batch_first: bool = True) -> dict[str, Run]:
    """A module with its weights shared; by hand the batch is folded into N."""
    dim = 0 if batch_first else 1

    def by_hand() -> Any:
        folded = x.flatten(0, 1) if batch_first else x.movedim(0, 1).flatten(1, 2)
        out = module(folded)
        out = out[0] if isinstance(out, tuple) else out
        return out.unflatten(dim, (x.shape[0], -1))

    def sample(row: Tensor) -> Any:
        out = module(row)
        return out[0] if isinstance(out, tuple) else out

    return mapped(sample, 0, (x,), by_hand, lambda: [module(row) for row in x])


def members(make: Callable[[], nn.Module], count: int, x: Tensor, by_hand: Callable[..., Any] | None) -> dict[str, Run]:
    """An ensemble on one input."""
    modules = [make() for _ in range(count)]
    ensemble = Ensemble(modules)
    state = stack_module_state(modules)  # type: ignore[arg-type]
    base = make().to("meta")
    peer = torch.vmap(lambda state, x: functional_call(base, state, (x,)), in_dims=(0, None))
    runs: dict[str, Run] = {
        "ours": lambda: ensemble(x),
        "torch.func": lambda: peer(state, x),
        "loop": lambda: torch.stack([m(x) for m in modules]),
    }
    if by_hand is not None:
        weights = [p.detach() for p in ensemble.parameters()]
        runs["by hand"] = lambda: by_hand(x, *weights)
    return runs


def mlp_by_hand(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """The members' two layers, a product each."""
    hidden = torch.baddbmm(b1.unsqueeze(1), x.expand(len(w1), *x.shape), w1.mT).relu()
    return torch.baddbmm(b2.unsqueeze(1), hidden, w2.mT)


def cnn() -> nn.Module:
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def attention(batch: int, causal: bool, grad: bool) -> dict[str, Run]:
    """scaled_dot_product_attention of (4, 4, 64, 32), once more mapped."""
    q, k, v = (torch.randn(batch, 4, 4, 64, 32, requires_grad=grad) for _ in range(3))

    def sample(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def backward(run: Callable[..., Tensor]) -> Run:
        if not grad:
            return lambda: run(q, k, v)
        return lambda: torch.autograd.grad(run(q, k, v).sum(), (q, k, v))

    folded = lambda q, k, v: sample(*(t.flatten(0, 1) for t in (q, k, v))).unflatten(0, (batch, -1))  # noqa: E731
    looped = lambda q, k, v: torch.stack([sample(*r) for r in zip(q, k, v, strict=True)])  # noqa: E731
    return {
        "ours": backward(vmap(sample)), "torch.func": backward(torch.vmap(sample)), "by hand": backward(folded),
        "loop": backward(looped),
    }  # fmt: skip


def rows() -> list[Row]:
    """Return the benchmark."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    norm = nn.BatchNorm2d(16).eval()
    conv = nn.Conv2d(8, 16, 3, padding=1)
    filters = torch.randn(8, 16, 8, 3, 3)
    images = torch.randn(8, 2, 8, 16, 16)
    classes = torch.randint(0, 10, (32, 16))

    def own_filters(x: Tensor, w: Tensor) -> Tensor:
        wide = x.movedim(0, 1).flatten(1, 2)
        return F.conv2d(wide, w.flatten(0, 1), groups=len(w)).unflatten(1, (len(w), -1)).movedim(1, 0)

    logits = torch.randn(32, 16, 10)
    return [
        Row("conv2d, weights shared", lambda: shared(conv, torch.randn(8, 2, 8, 16, 16))),
        Row(
            "conv2d, weights and input mapped",
            lambda: mapped(
                F.conv2d, 0, (images, filters), lambda: own_filters(images, filters),
                lambda: [F.conv2d(x, w) for x, w in zip(images, filters, strict=True)],
            ),
        ),
        Row("batch norm, eval", lambda: shared(norm, torch.randn(8, 4, 16, 8, 8))),
        Row("CNN forward, batch 8 of 4 images", lambda: shared(cnn(), torch.randn(8, 4, 3, 16, 16))),
        Row("transformer layer, batch 8 of 4", lambda: shared(encoder, torch.randn(8, 4, 16, 64)), grad=True),
        Row("LSTM, 2 layers, 20 steps, batch 16 of 4", lambda: shared(nn.LSTM(32, 64, 2), torch.randn(16, 20, 4, 32), False)),
        Row("GRU, 20 steps, batch 16 of 4", lambda: shared(nn.GRU(32, 64), torch.randn(16, 20, 4, 32), False)),
        Row("ensemble of 10 MLPs 64-128-10, batch 32", lambda: members(mlp, 10, torch.randn(32, 64), mlp_by_hand)),
        Row("ensemble of 10 CNNs, 4 images", lambda: members(cnn, 10, torch.randn(4, 3, 16, 16), None)),
        Row("ensemble of 10 LSTMs, 20 steps", lambda: members(lambda: Only(nn.LSTM(32, 64)), 10, torch.randn(20, 4, 32), None)),
        Row("ensemble of 5 LSTMs 64-64, 50 steps of 32", lambda: members(lambda: Only(nn.LSTM(64, 64)), 5, torch.randn(50, 32, 64), None)),
        Row("attention (4, 4, 64, 32), batch 8", lambda: attention(8, causal=False, grad=False)),
        Row("attention, causal, with gradients", lambda: attention(8, causal=True, grad=True), grad=True),
        Row(
            "cross_entropy, batch 32 of 16",
            lambda: mapped(
                F.cross_entropy, 0, (logits, classes),
                lambda: F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view(32, 16).mean(1),
                lambda: torch.stack([F.cross_entropy(x, t) for x, t in zip(logits, classes, strict=True)]),
            ),
        ),
    ]  # fmt: skip


def mlp() -> nn.Module:
    """One member."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


class Only(nn.Module):
    """A recurrent layer, without its last state."""

    def __init__(self, layer: nn.Module) -> None:
        """Hold the layer."""
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.layer(x)[0]
