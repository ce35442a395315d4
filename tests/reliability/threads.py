"""Many threads that map functions at once, from the first use on."""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.reliability.rows import Row, fresh, row

THREADS = 16


def functions() -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Return functions of a mapped (3, 3) tensor, and how each is mapped: by vmap, and by the loop."""
    from vmap_autograd import grad
    from vmap_core import vmap

    def gradient(f: Any) -> Any:
        def of(x: Any) -> Any:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(f(x), x)[0]

        return of

    def written(x: Any) -> Any:
        total = torch.zeros(3)
        for line in x:
            total += line
        return total

    def loss(x: Any) -> Any:
        return (x @ x.T).tanh().sum()

    w = torch.arange(9.0).view(3, 3).requires_grad_()
    plain = {
        "operations": lambda x: (x * 2 + 1).softmax(-1) @ x,
        "in-place": written,
        "linalg": lambda x: torch.linalg.cholesky(x @ x.T + torch.eye(3)),
        "convolution": lambda x: torch.nn.functional.conv1d(x[None], torch.ones(2, 3, 2)),
        "indexing": lambda x: torch.cat([x[1:], x[:1].flip(1)]).amax(0),
    }
    made = {name: (vmap(f), lambda x, f=f: torch.stack([f(one) for one in x])) for name, f in plain.items()}
    made["nested"] = (
        lambda x: vmap(lambda a: vmap(lambda b: a.cos() @ b)(a))(x),
        lambda x: torch.stack([torch.stack([a.cos() @ b for b in a]) for a in x]),
    )
    made["gradients inside"] = (vmap(grad(loss)), lambda x: torch.stack([gradient(loss)(a) for a in x]))
    made["gradients outside"] = (
        lambda x: torch.autograd.grad(vmap(lambda a: loss(a * w))(x).sum(), w)[0],
        lambda x: torch.autograd.grad(sum(loss(a * w) for a in x), w)[0],
    )
    return made


def at_once(threads: int, each: int) -> dict[str, int]:
    """Let threads map every function so often, with a thread switch wherever one may be."""
    sys.setswitchinterval(1e-6)
    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).sum().backward()  # PyTorch's own first use
    faults: collections.Counter[str] = collections.Counter()
    together = threading.Barrier(threads)

    def work(seed: int) -> None:
        try:
            generator = torch.Generator().manual_seed(seed)
            together.wait()
            made = functions()
            for _ in range(each):
                for name, (mapped, loop) in made.items():
                    x = torch.randn(4, 3, 3, generator=generator)
                    try:
                        torch.testing.assert_close(mapped(x), loop(x), rtol=1e-4, atol=1e-4)
                    except AssertionError:
                        faults[f"different ({name})"] += 1
        except Exception as error:
            faults[f"errors ({type(error).__name__}: {error})"[:200]] += 1

    running = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return dict(faults)


def rows(quick: bool) -> Iterator[Row]:
    """Iterate over the rows."""
    each, processes = (3, 1) if quick else (40, 5)
    faults: collections.Counter[str] = collections.Counter()
    for _ in range(processes):
        faults.update(fresh(at_once, THREADS, each))
    kinds = len(functions())
    yield row(
        f"{THREADS} threads that map {kinds} functions at once (in-place, nested, with gradients inside and outside), from "
        f"the first use of a process on, in {processes} processes",
        processes * THREADS * each * kinds, dict(faults), "all equal to the loop",
    )  # fmt: skip
