"""The three uses of vmap on real data, each checked against the plain loop and timed beside it.

Run ``python -m vmap_core.demo``. Needs vmap-autograd (uses 2 and 3) and scikit-learn, which ships the data: 1,797
handwritten digits of 8 x 8 pixels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .rulekit.packs import packs, source
from .transform.vmap import vmap


@dataclass
class Row:
    """One line of the table: times in milliseconds, the largest difference from the loop."""

    use: str
    result: str
    loop_ms: float
    vmap_ms: float
    difference: float


def load_digits() -> Tensor:
    """Return the digits: (1797, 65), 64 pixels in 0..1, then +1 for an eight and -1 for any other digit.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the demo's data comes with scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    pixels = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target == 8).float() * 2 - 1
    return torch.cat([pixels, labels[:, None]], dim=1)


def model(sample: Tensor, weight: Tensor) -> Tensor:
    """Return the logistic loss of one sample, (65,), (64,) -> (): no batch dim anywhere."""
    pixels, label = sample[:-1], sample[-1]
    return softplus(-label * pixels.dot(weight))


def milliseconds(run: Callable[[], Tensor], repeat: int) -> float:
    """Return the median time of a call, after one to warm up."""
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def compare(use: str, loop: Callable[[], Tensor], mapped: Callable[[], Tensor], repeat: int) -> Row:
    """Check one use against its loop and time both.

    Raises:
        AssertionError: the results differ.
    """
    expected, got = loop(), mapped()
    torch.testing.assert_close(got, expected)
    shape = " x ".join(map(str, got.shape))
    return Row(use, shape, milliseconds(loop, 3), milliseconds(mapped, repeat), (got - expected).abs().max().item())


def run(samples: Tensor, repeat: int = 20) -> list[Row]:
    """Run the three uses on rows of ``samples``, (n, 65)."""
    weight = torch.linspace(-1, 1, 64)

    def forward_loop() -> Tensor:
        return torch.stack([model(sample, weight) for sample in samples])

    def forward() -> Tensor:
        return vmap(lambda sample: model(sample, weight))(samples)

    rows = [compare("1 per-sample model, batched", forward_loop, forward, repeat)]

    x = weight.clone().requires_grad_()
    N = min(256, len(samples))

    def losses() -> Tensor:
        return softplus(-samples[:N, -1] * (samples[:N, :-1] @ x))

    def jacobian_loop() -> Tensor:
        y = losses()
        return torch.stack([torch.autograd.grad(y, x, v, retain_graph=True)[0] for v in torch.eye(N)])

    def jacobian() -> Tensor:
        y = losses()
        return vmap(lambda v: torch.autograd.grad(y, x, v)[0])(torch.eye(N))

    rows.append(compare("2 Jacobian by one batched grad", jacobian_loop, jacobian, repeat))

    def gradients_loop() -> Tensor:
        return torch.stack(
            [torch.autograd.functional.vjp(lambda w, s=s: model(s, w), weight)[1] for s in samples]  # type: ignore
        )

    def gradients() -> Tensor:
        return vmap(lambda sample: torch.autograd.functional.vjp(lambda w: model(sample, w), weight)[1])(samples)

    rows.append(compare("3 per-sample gradients", gradients_loop, gradients, repeat))
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'use':<32}{'result':>12}{'loop':>12}{'vmap':>12}{'speedup':>10}{'max |diff|':>13}"]
    lines.append("-" * len(lines[0]))
    for r in rows:
        lines.append(
            f"{r.use:<32}{r.result:>12}{r.loop_ms:>9.2f} ms{r.vmap_ms:>9.2f} ms"
            f"{r.loop_ms / r.vmap_ms:>9.0f}x{r.difference:>13.1e}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None, prog: str = "python -m vmap_core.demo") -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1797, help="how many digits to use (default: all 1797)")
    parser.add_argument("--repeat", type=int, default=20, help="timed runs of each mapped call (median is shown)")
    options = parser.parse_args(argv)
    if "autograd" not in {p.name for p in packs() if p.error is None}:
        parser.exit(2, f"uses 2 and 3 need the gradient rules of {source('vmap-autograd')}\n")
    torch.manual_seed(0)
    try:
        samples = load_digits()[: options.samples]
    except ImportError as error:
        parser.exit(2, f"{error}\n")
    print(f"{len(samples)} handwritten digits (8 x 8), torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"rule packs: {', '.join(f'{p.name} {p.version} ({p.rules} rules)' for p in packs() if p.error is None)}\n")
    print(table(run(samples, options.repeat)))
    print("\nEvery result was compared with the Python loop over the samples.")


if __name__ == "__main__":
    main()
