"""Which kinds of nodes take a vector with a batch dim in front: ``python -m tests.compatibility.nodes``.

Every node in the graphs of OpInfo's samples, and in those of their gradients, is run on a batch of vectors, as it is or
by the formula that vmap_autograd has for it, and on one vector after the other. A kind for which both agree, always and
for batches of several sizes, is written to vmap_autograd's `_measured_nodes` with the version of PyTorch at hand; what the
file says of other versions stays. Each operator is tried in a process of its own, since some nodes crash on what they do
not expect.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import UnaryUfuncInfo

import vmap_autograd._nodes as nodes
from vmap_autograd._torch import PythonNode
from vmap_autograd._walk import fitted

VERSION = ".".join(torch.__version__.split(".")[:2])
FILE = Path(nodes.__file__).with_name("_measured_nodes.py")
HEAD = '''"""The kinds of nodes that take a batch of vectors, and with which versions of PyTorch.

Written by ``python -m tests.compatibility.nodes``.
"""

NODES = {
'''
BATCHES = (3, 1, 5)  # OpInfo's own sizes are among them
BAD = ("bad", "bad of several dims", "crash")
SAMPLES, NODES, SECONDS = 12, 4, 5  # of an operator; nodes of a kind, of each; seconds for all of an operator's


def outputs_of(op: Any, dtype: torch.dtype) -> Iterator[list[Any]]:
    """Iterate over what an operator gives for its samples: tensors with a graph, and then their gradients."""
    if not op.supports_autograd or dtype not in op.supported_dtypes("cpu"):
        return
    samples = [s for _, s in zip(range(SAMPLES), op.sample_inputs("cpu", dtype, requires_grad=True), strict=False)]
    if isinstance(op, UnaryUfuncInfo):  # it has samples of one dim only
        flat = [s for s in samples if s.input.shape == (20,)]
        samples += [type(s)(s.input.unflatten(0, (2, -1)), args=s.args, kwargs=s.kwargs) for s in flat]
    for sample in samples:
        try:
            out = op(sample.input, *sample.args, **sample.kwargs)
        except Exception:
            continue
        outs = [o for o in (out if isinstance(out, tuple | list) else (out,)) if is_plain(o)]
        yield outs
        leaves = [x for x in torch.utils._pytree.tree_leaves((sample.input, sample.args, sample.kwargs)) if is_plain(x)]
        if not outs or not leaves or not op.supports_gradgrad or dtype is not torch.float64:
            continue
        try:
            grads = torch.autograd.grad(
                outs, leaves, [torch.randn_like(o) for o in outs], create_graph=True, allow_unused=True
            )
        except Exception:
            continue
        yield [g for g in grads if is_plain(g)]


def is_plain(x: Any) -> bool:
    """Tell whether this is a dense real tensor with a graph."""
    return isinstance(x, torch.Tensor) and x.requires_grad and not x.is_complex() and x.layout is torch.strided


def nodes_of(tensors: list[Any]) -> Iterator[Any]:
    """Iterate over the nodes of a graph that the walk may run by themselves."""
    todo, seen = [t.grad_fn for t in tensors if t.grad_fn is not None], set()
    while todo:
        node = todo.pop()
        if node in seen or type(node).__name__ == "AccumulateGrad":
            continue
        seen.add(node)
        todo += [n for n, _ in node.next_functions if n is not None]
        if not isinstance(node, PythonNode) and not any(m.dtype.is_complex for m in node._input_metadata):
            yield node


def agrees(node: Any, batch: int) -> bool:
    """Tell whether a node does the same for a batch of vectors as for each."""
    meta = node._input_metadata[0]
    g = torch.randn(batch, *meta.shape, dtype=meta.dtype)
    each = [listed(node(v)) for v in g]
    needed = [n is not None for n, _ in node.next_functions]
    got = nodes.FORMULAS.get(type(node).__name__, nodes.as_it_is)(node, g, needed)
    if got is NotImplemented:
        return True
    for (following, k), result, *expected in zip(node.next_functions, listed(got), *each, strict=True):
        if following is None:
            continue
        if result is None or None in [e if e is None else 0 for e in expected]:
            if result is not None or any(e is not None for e in expected):
                return False
            continue
        target = following._input_metadata[k]
        shape, dtype = torch.Size(target.shape), target.dtype
        result = fitted(result, shape, dtype)
        expected = torch.stack([fitted(e[None], shape, dtype)[0] for e in expected])
        if result.shape != expected.shape or result.dtype != expected.dtype or result.layout is not torch.strided:
            return False
        if not torch.allclose(
            result, expected, equal_nan=True, rtol=1e-4 if meta.dtype == torch.float32 else 1e-7, atol=1e-4
        ):
            return False
    return True


def listed(results: Any) -> tuple[Any, ...]:
    """Return what a node returns as a tuple."""
    return results if isinstance(results, tuple) else (results,)


def try_operator(op: Any, refused: set[str], out: int) -> None:
    """Write what is found of the nodes of an operator, a line each: the kind, and whether it agrees."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor's: then it is killed
    torch.manual_seed(0)
    tried: Counter[tuple[Any, ...]] = Counter()
    for dtype in (torch.float64, torch.float32):
        for number, tensors in enumerate(outputs_of(op, dtype)):
            for node in nodes_of(tensors):
                kind, metas = type(node).__name__, node._input_metadata
                if kind in refused or metas[0].is_nested_tensor or tried[kind, number] == NODES:
                    continue
                tried[kind, number] += 1
                try:
                    [node(torch.randn(m.shape, dtype=m.dtype)) for m in metas if len(metas) == 1]
                except RuntimeError:  # on one vector
                    continue
                os.write(out, f"{kind} tried\n".encode())
                try:
                    good = len(metas) == 1 and all(agrees(node, n) for n in BATCHES)
                except (RuntimeError, IndexError, TypeError, AttributeError, ValueError):
                    good = False
                shapes = [
                    metas[0].shape,
                    *(n._input_metadata[k].shape for n, k in node.next_functions if n is not None),
                ]
                many = any(sum(n > 1 for n in shape) > 1 for shape in shapes)
                os.write(out, f"{kind} {'good' if good else 'bad'}{' of several dims' if many else ''}\n".encode())
    os.write(out, b"- end\n")


def lines_of(op: Any, refused: set[str]) -> list[tuple[str, str]]:
    """Run it in a process of its own."""
    read, write = os.pipe()
    if not (process := os.fork()):
        os.close(read)
        try:
            try_operator(op, refused, write)
        except Exception as error:
            print(op.name, repr(error), file=sys.stderr)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = [line.strip().partition(" ") for line in pipe]
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:  # out of time
        lines.append(("-", " ", "end"))
    return [(kind, what) for kind, _, what in lines]


def measure() -> dict[str, Counter[str]]:
    """Return what was found, by kind."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for op in op_db:
        print(op.name, flush=True)
        refused = {kind for kind, counts in found.items() if counts["crash"]}
        while True:
            lines = lines_of(op, refused)
            for kind, what in lines:
                found[kind][what] += what != "tried"
            if not lines or lines[-1][1] != "tried":
                break
            kind = lines[-1][0]  # crashed the process, or took too long
            found[kind]["crash"] += 1
            refused.add(kind)
    return found


def main() -> None:
    """Measure, and write the file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = measure()
    good = {
        kind for kind, counts in found.items()
        if (counts["good of several dims"] or (counts["good"] and kind in nodes.FORMULAS)) and not any(map(counts.get, BAD))
    }  # fmt: skip
    known = {k: set(v.split()) - {VERSION} for k, v in nodes.NODES.items()}
    for kind in good:
        known.setdefault(kind, set()).add(VERSION)
    for kind in sorted(nodes.FORMULAS.keys() - good):
        print(f"no longer right, or not reached: the formula of {kind}: {dict(found.get(kind, {}))}")
    rows = [f'    "{k}": "{" ".join(sorted(v))}",\n' for k, v in sorted(known.items()) if v]
    FILE.write_text(HEAD + "".join(rows) + "}\n")
    print(f"PyTorch {VERSION}: {len(good)} of {len(found)} kinds")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({k: dict(c) for k, c in sorted(found.items())}, indent=1))


if __name__ == "__main__":
    main()
