"""Memory beside the same written by hand: bytes moved (read and written by operations) and bytes alive at the peak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmap_autograd import grad
from vmap_core import vmap
from vmap_core.dispatch.lowering import LoweredTensor
from vmap_core.transform.memory import Meter


def touched(x: Tensor) -> int:
    """Return the bytes that a tensor's elements lie in; an expanded dim is read from one place."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else 1
    return count * x.element_size()


class Traffic(TorchDispatchMode):
    """Adds up what operations that are no views read and write.

    Attributes:
        moved: bytes so far.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count."""
        if LoweredTensor in types:
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func not in _FREE:
            self.moved += sum(touched(t) for t in tree_leaves((args, kwargs, out)) if type(t) is Tensor)
        return out


_FREE = {torch.ops.aten._unsafe_view.default, torch.ops.aten._reshape_alias.default, torch.ops.aten.detach.default}


def used(run: Callable[[], Any]) -> dict[str, int]:
    """Return the bytes that a run moves and has alive at its peak."""
    with Traffic() as traffic:
        run()
    with Meter() as meter:
        out = run()
    del out
    return {"moved": traffic.moved, "peak": meter.peak}


@dataclass(frozen=True)
class Case:
    """A mapped function and the same with the batch written in, on the same arguments."""

    mapped: Callable[..., Any]
    by_hand: Callable[..., Any]
    args: tuple[Any, ...]


def _gradients(w: Tensor, v: Tensor, x: Tensor, t: Tensor) -> Any:
    """Per-sample gradients of `_loss`, written out."""
    h = torch.tanh(F.linear(x, w))
    g = 2 * (F.linear(h, v) - t)
    back = (g @ v) * (1 - h * h)
    return back[:, :, None] * x[:, None], g[:, :, None] * h[:, None]


def _loss(w: Any, v: Any, x: Any, t: Any) -> Any:
    return (F.linear(torch.tanh(F.linear(x, w)), v) - t).square().sum()


def cases() -> dict[str, Case]:
    """Return one or more cases of each family of rules."""
    torch.manual_seed(0)
    n, d, k = 16, 32, 24
    x, y, last = torch.randn(n, d), torch.randn(n, d), torch.randn(d, n)
    m, a, b, row = torch.randn(n, d, k), torch.randn(n, k, d), torch.randn(d, k), torch.randn(d)
    image, filters = torch.randn(n, 4, 3, 8, 8), torch.randn(5, 3, 3, 3)
    q, wide = torch.randn(n, 2, 8, d), torch.randn(n, 6, d)
    spd = torch.eye(d) + 0.01 * torch.randn(d, d).square()
    index, table = torch.randint(0, d, (n, 7)), torch.randn(50, d)
    labels = torch.randint(0, k, (n, d))
    return {
        "pointwise": Case(vmap(lambda x, y: x * y + x), lambda x, y: x * y + x, (x, y)),
        "pointwise, one shared": Case(vmap(torch.mul, (0, None)), torch.mul, (x, row)),
        "pointwise, ranks differ": Case(vmap(torch.mul, (0, 0)), lambda m, x: m * x[:, :, None].mT, (m.mT, x)),
        "pointwise, batch in the last dim": Case(
            vmap(lambda x, r: x.exp() * r, (1, None), 1), lambda x, r: x.exp() * r[:, None], (last, row)
        ),
        "where": Case(vmap(torch.where, (0, 0, None)), torch.where, (x > 0, x, torch.zeros(()))),
        "expand": Case(vmap(lambda r, x: r.expand(5, d) + x), lambda r, x: r[:, None] + x[:, None].expand(-1, 5, -1), (x, y)),
        "reduction": Case(vmap(lambda x: x.sum()), lambda x: x.sum(1), (x,)),
        "reduction, batch in the last dim": Case(vmap(lambda x: x.amax(0), 1), lambda x: x.amax(0), (last,)),
        "softmax": Case(vmap(lambda x: x.softmax(-1)), lambda x: x.softmax(-1), (x,)),
        "cumsum": Case(vmap(lambda x: x.cumsum(0), 1, 1), lambda x: x.cumsum(0), (last,)),
        "sort": Case(vmap(lambda x: x.sort()), lambda x: x.sort(1), (x,)),
        "matmul": Case(vmap(torch.matmul), torch.matmul, (m, a)),
        "matmul, weight shared": Case(vmap(torch.matmul, (0, None)), torch.matmul, (m.mT.contiguous(), b)),
        "matmul, shared on the left": Case(
            vmap(torch.matmul, (None, 0)), lambda b, x: (b @ x.T).T, (b.T.contiguous(), x)
        ),
        "linear": Case(vmap(F.linear, (0, None, None)), F.linear, (wide, b.T.contiguous(), torch.randn(k))),
        "conv2d, weight shared": Case(
            vmap(F.conv2d, (0, None)), lambda x, w: F.conv2d(x.flatten(0, 1), w).unflatten(0, (n, 4)), (image, filters)
        ),
        "attention": Case(vmap(F.scaled_dot_product_attention), F.scaled_dot_product_attention, (q, q, q)),
        "layer_norm": Case(
            vmap(lambda x, w: F.layer_norm(x, (d,), w), (0, None)), lambda x, w: F.layer_norm(x, (d,), w), (wide, row)
        ),
        "cat": Case(vmap(lambda x, y: torch.cat([x, y])), lambda x, y: torch.cat([x, y], 1), (x, y)),
        "stack": Case(vmap(lambda x, y: torch.stack([x, y])), lambda x, y: torch.stack([x, y], 1), (x, y)),
        "cat, one shared": Case(
            vmap(lambda x, r: torch.cat([x, r]), (0, None)), lambda x, r: torch.cat([x, r.expand(n, d)], 1), (x, row)
        ),
        "gather": Case(vmap(lambda x, i: x.gather(0, i)), lambda x, i: x.gather(1, i), (x, index)),
        "gather, table shared": Case(vmap(lambda t, i: t[i], (None, 0)), lambda t, i: t[i], (table, index)),
        "embedding": Case(vmap(F.embedding, (0, None)), F.embedding, (index, table)),
        "index_select": Case(vmap(lambda m, i: m.index_select(1, i), (0, None)), lambda m, i: m.index_select(2, i), (m, index[0] % k)),
        "solve, matrix shared": Case(
            vmap(torch.linalg.solve, (None, 0)), lambda s, x: torch.linalg.solve(s, x.T).T, (spd, x)
        ),
        "cholesky": Case(vmap(torch.linalg.cholesky), torch.linalg.cholesky, (spd.expand(n, d, d).contiguous(),)),
        "cross_entropy": Case(
            vmap(F.cross_entropy),
            lambda x, t: F.cross_entropy(x.flatten(0, 1), t.flatten(), reduction="none").view(n, d).mean(1),
            (m, labels),
        ),
        "per-sample gradients": Case(
            vmap(grad(_loss, argnums=(0, 1)), (None, None, 0, 0)),
            _gradients,
            (torch.randn(k, d), torch.randn(4, k), x, torch.randn(n, 4)),
        ),
    }  # fmt: skip


def measure() -> list[dict[str, Any]]:
    """Return, for each case, the bytes of both ways."""
    results = []
    for name, case in cases().items():
        row: dict[str, Any] = {"row": name}
        for way, run in {"by hand": case.by_hand, "ours": case.mapped}.items():
            for what, size in used(lambda run=run, case=case: run(*case.args)).items():
                row[f"{what}, {way}"] = size
        results.append(row)
    return results
