"""Chains of two calls, ``op2(op1(x))``: the second one is a view, a write, or asks how the first one's result lies in memory.

There is one for each pair of templates and each dtype. How the results lie in memory is always asked, and a last write shows what
shares it.
"""

from __future__ import annotations

import functools
import random
import warnings
from dataclasses import replace

import torch

from .generate import Draw, asks
from .program import Program, Statement
from .templates import EXPRESSIONS, LAYOUT, VIEWS, WRITES, lines

DTYPES = (torch.float32, torch.int64, torch.bool, torch.bfloat16, torch.complex64)
FIRST = tuple(dict.fromkeys(template for family in EXPRESSIONS for template in family))
SECOND = tuple(dict.fromkeys([*lines(VIEWS), *lines(WRITES), *lines(LAYOUT)]))
KERNELS = ("torch.cat", "stack", "F.pad")  # choose strides by the number of dims, which is not kept (docs/contract.md)
TRIES = 8  # draws until the calls run on one sample


@functools.cache
def chains() -> list[tuple[str, str, torch.dtype]]:
    """Return all chains, in an order of which any part is a sample."""
    found = [(a, b, dtype) for a in FIRST for b in SECOND for dtype in DTYPES]
    random.Random(0).shuffle(found)
    return found


def chain(number: int) -> Program | None:
    """Return the program of a chain; None where no draw of its templates runs on one sample.

    After the last chain the numbers start again, with other draws.
    """
    first, second, dtype = chains()[number % len(chains())]
    source = random.Random(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "An output with one or more elements was resized")
        drawn = (Chain(source).program(first, second, dtype) for _ in range(TRIES))
        found = next((p for p in drawn if p), None)
    return found and replace(found, seed=number)


class Chain(Draw):
    """What is drawn for a chain: the second call is of what the first one made."""

    def program(self, first: str, second: str, dtype: torch.dtype) -> Program | None:
        """Return a program of two calls, if they run."""
        one, *others = self.inputs()
        inputs = (replace(one, dtype=dtype, below=0), *others)
        self.start(inputs)
        body: list[Statement] = []
        for template, assigned in ((first, True), (second, second in lines(VIEWS))):
            statement = self.filled(template, assigned)
            if statement is None or not self.added(inputs, body, statement):
                return None
        made = [name for name in self.known if name[0] == "v"]
        if any(kernel in first for kernel in KERNELS):
            return None if asks(body[1]) else Program(inputs, self.batch, tuple(body), tuple(made))
        for name in made:
            self.added(inputs, body, Statement(f"facts.append(strides({name}))"))
        self.added(inputs, body, Statement(f"{made[-1]}.fill_(1)", "{w}.fill_(1)"))
        return Program(inputs, self.batch, tuple(body), tuple(made))

    def a_x(self) -> str:
        """Return the newest tensor's name."""
        name = next((name for name in reversed(self.known) if name[0] == "v"), "x0")
        self.near = self.known[name]
        return name

    a_w = a_x

    def a_i(self) -> str:
        """Return an index tensor with dims: how a view at one place lies in memory is not told (docs/contract.md)."""
        found = super().a_i()
        return f"{found}.reshape(-1)" if found in self.known and not self.known[found].ndim else found
