"""Random programs with control flow by values, in a mapped function and in the loop.

``python -m tests.programs.control_flow 0:1000`` runs a thousand seeds and counts; a program that differs is printed. Programs assign, write in
place and through views, branch, loop, break, return, read numbers, keep lists, dicts and objects, call helpers, and take gradients.
"""

from __future__ import annotations

import collections
import linecache
import random
import signal
import sys
from typing import Any

import torch

from vmap_control_flow import split
from vmap_core import VmapError, vmap

HEADER = """import math
import torch


class Box:
    def __init__(self, v):
        self.v, self.n = v, 0

    def grow(self, by):
        if by.sum() > 0:
            self.v = self.v + by
            self.n += 1
        return self.v


def helper(a, k):
    if a.sum() > 0.3:
        for _ in range(k % 3):
            a = a * 0.5 + 1
        return a
    return -a


def pick(a):
    return a if a[0] > 0 else a[:2]


def writer(a, out):
    if a[0] > a[1]:
        a.add_(0.5)
        out.append(a.sum())


"""
EXPRESSIONS = (
    "a * 0.5 + b", "torch.sin(a)", "b - a", "a + 1", "a * n", "torch.where(a > 0, a, b)", "b.clone()", "a[:1] + b", "a",
    "torch.cat([a[1:], b[:1]])", "b + k", "a / (k + 1)", "helper(a, k)", "a * s", "a.flip(0)", "c[0] + a", "c.sum(1)", "a[i2] * b",
    "a if a.sum() > b.sum() else b * 2", "box.v - b", "box.grow(a)", "d['x'] * b", "a + max(k, 2)", "b * math.sqrt(abs(s))",
    "torch.stack(lst).sum() + a if lst else a", "sum(lst, a)", "a.masked_fill(a > b, 0.5)", "torch.zeros(3).index_fill_(0, i2.reshape(1), s)",
)  # fmt: skip
CONDITIONS = (
    "a.sum() > 0", "b[0] < a[1]", "a.norm() < 3 and b.sum() > -1", "not (a.max() > 1)", "a[0].item() > 0.2 or k > 2", "n > 1",
    "k % 2 == 0", "float(b.sum()) > 0", "0 < k < 3", "lst", "len(lst) > 1", "box.n > 0", "-1 < a[2] < 1", "(a > 0).any() and k != 1",
    "s > 0.1", "bool(a[1] > b[1]) == (k > 1)", "'y' in d",
)  # fmt: skip
STATEMENTS = (
    "k += 1", "k = k * 2 % 7", "n = n + 1", "a, b = b, a", "b += 1", "a[0] = b[1]", "a.mul_(0.5)", "lst.append(a.sum())",
    "k = int(a.sum().abs()) % 5", "v = a[1]", "b = b + v", "v.add_(1)", "s = b.mean().item()", "c = a.outer(b)", "c[1] += a", "c[k % 3, 0] = s",
    "box.v = a", "box.n += k % 2", "box = Box(b)", "d['x'] = a", "d['y'] = k", "i2 = a.argmax()", "a[i2] = 0.25", "b[k % 3] += 1",
    "w2 = a[:2]", "w2.mul_(0.5)", "c.t()[0].add_(b)", "writer(a, lst)", "a = a.clone()", "e = lst", "e.append(b[0])", "k, s = k // 2, s * 0.5",
    "lst = lst[:2]", "b = a", "n += 1", "c = c.t()", "a = c[:, 0]", "x0.add_(1)", "k = len(lst)", "b[:k % 3].add_(s)", "assert k > -100",
    "lst.append(helper(a, k).sum())", "lst.insert(k % 2, pick(a).sum())", "f = lambda t: t * k0", "b = f(b)", "u = a[a > 0]", "b = b + u.sum()", "k = k + len(u)",
)  # fmt: skip


class Writer:
    """Writes one program."""

    def __init__(self, seed: int, fresh: bool = False) -> None:
        self.random = random.Random(seed)
        self.loops = 0

    def source(self) -> str:
        """Return it: ``f(a, b)`` on vectors of three."""
        body = self.block(3, 1)
        end = "    return a * 1 + b + v + (lst[-1] if len(lst) > 1 else 0) + box.v.sum(), torch.tensor(0.0) + k + box.n, c.sum() + s + len(d)\n"
        start = (
            "def f(a, b):\n    x0 = a\n    a = a * 1\n    b = b * 1\n    n = torch.tensor(1)\n    k, k0 = 0, 2\n    s = 0.5\n    lst = []\n    v = a[0]\n"
            "    w2 = b[:2]\n    c = a.outer(b)\n    box = Box(b)\n    d = {'x': a}\n    e = lst\n    i2 = torch.tensor(0)\n    f = lambda t: t + 1\n    u = a\n"
        )
        return HEADER + start + "\n".join(body) + "\n" + end

    def block(self, depth: int, indent: int) -> list[str]:
        """Return some statements."""
        r, out, pad = self.random, [], "    " * indent
        for _ in range(r.randint(1, 3)):
            p = r.random()
            if p < 0.5 or not depth:
                out.append(
                    pad + (f"{r.choice('ab')} = {r.choice(EXPRESSIONS)}" if r.random() < 0.4 else r.choice(STATEMENTS))
                )
            elif p < 0.75:
                out += [f"{pad}if {r.choice(CONDITIONS)}:", *self.block(depth - 1, indent + 1)]
                if r.random() < 0.5:
                    out += [f"{pad}else:", *self.block(depth - 1, indent + 1)]
            elif p < 0.87:
                self.loops += 1
                count = f"count{self.loops}"
                out += [
                    f"{pad}{count} = 0",
                    f"{pad}while {count} < 4 and {r.choice(CONDITIONS)}:",
                    f"{pad}    {count} += 1",
                ]
                out += self.block(depth - 1, indent + 1)
                if r.random() < 0.4:
                    out.append(f"{pad}    if {r.choice(CONDITIONS)}: {r.choice(['break', 'continue'])}")
                if r.random() < 0.2:
                    out += [f"{pad}else:", *self.block(0, indent + 1)]
            elif p < 0.94:
                out += [
                    f"{pad}for i in range({r.choice(['3', 'k % 4', 'int(n) % 5', 'len(lst) % 4'])}):",
                    *self.block(depth - 1, indent + 1),
                ]
            elif p < 0.97:
                out += [
                    f"{pad}for t in {r.choice(['a', 'lst[:3]', 'zip(a, b)', 'enumerate(lst[:2])'])}:",
                    *self.block(depth - 1, indent + 1),
                ]
            else:
                out += [f"{pad}with torch.no_grad():", *self.block(depth - 1, indent + 1)]
        if r.random() < 0.08:
            out.append(f"{pad}return a * 1 + b, torch.tensor(0.0) + k, a.sum() + s")
        return out


def function(source: str, name: str) -> Any:
    """Return ``f`` of a program, whose source can be looked up."""
    file = f"<program {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    space: dict[str, Any] = {"__name__": f"program_{name}"}
    exec(compile(source, file, "exec"), space)
    return space["f"]


class _Slow(BaseException):
    """A program takes too long."""


def late(*_: Any) -> None:
    """Stop a program: a handler of ``SIGALRM``."""
    raise _Slow


def outcome(f: Any, size: int, seed: int, mapped: bool) -> Any:
    """Return results, and what the inputs have become, of a program; or the error."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(size, 3, generator=g, dtype=torch.float64) for _ in "ab")
    wa, wb = (t.clone().requires_grad_(seed % 3 == 0) for t in (a, b))
    xa, xb = wa * 1, wb * 1
    try:
        if mapped:
            out = vmap(split(f))(xa, xb)
        else:
            rows = (
                [f(p, q) for p, q in zip(xa.unbind(0), xb.unbind(0), strict=True)]
                if not wa.requires_grad
                else [f(xa[i], xb[i]) for i in range(size)]
            )
            if len({tuple(o.dtype for o in row) for row in rows}) > 1:
                return TypeError("samples return several dtypes")
            out = tuple(map(torch.stack, zip(*rows, strict=True)))
    except _Slow:
        raise
    except Exception as e:
        return e
    grads = []
    if wa.requires_grad and any(o.requires_grad for o in out):
        try:
            total = sum((o * (1 + o.detach().cos())).sum() for o in out)
            grads = [
                torch.zeros(()) if t is None else t for t in torch.autograd.grad(total, (wa, wb), allow_unused=True)
            ]
        except RuntimeError as e:
            return e
    return [*out, xa, xb, *grads]


def verdict(seed: int, size: int = 9) -> tuple[str, str]:
    """Return how a program ends: "equal", "DIFFERENT", "refused ...", "raises" (the loop does, or takes too long); and its source."""
    source = Writer(seed).source()
    f = function(source, str(seed))
    signal.alarm(4)
    try:
        expected = outcome(f, size, seed, mapped=False)
    except _Slow as e:
        expected = ValueError(e)
    signal.alarm(30)
    if isinstance(expected, Exception):
        return "raises", source
    found = outcome(f, size, seed, mapped=True)
    if isinstance(found, VmapError):
        return f"refused: {type(found).__name__} {str(found)[:70]}", source
    if isinstance(found, Exception):
        return f"ERROR {type(found).__name__} {str(found)[:90]}", source
    same = len(found) == len(expected) and all(
        x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, rtol=1e-9, atol=1e-9, equal_nan=True)
        for x, y in zip(found, expected, strict=True)
    )
    return ("equal" if same else "DIFFERENT"), source


def main(first: int, last: int) -> None:
    """Run seeds, and print what they come to."""
    signal.signal(signal.SIGALRM, late)
    counts: collections.Counter[str] = collections.Counter()
    examples: dict[str, list[int]] = collections.defaultdict(list)
    for seed in range(first, last):
        try:
            found, _ = verdict(seed)
        except _Slow:
            found = "SLOW"
        signal.alarm(0)
        counts[found] += 1
        examples[found].append(seed)
        if found.isupper():
            print(found, seed, flush=True)
    for found, n in counts.most_common():
        print(n, found, examples[found][:6])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1].split(":")))
