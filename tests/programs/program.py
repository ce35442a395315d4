"""A program: a function of tensors as Python source, its inputs, and the ways they are mapped."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FILE = "<program>"
NAME = re.compile(r"\b[xv]\d+\b")
"""The names of inputs, x0, and of what is made, v0."""


@dataclass(frozen=True)
class Input:
    """A tensor that a program takes.

    Attributes:
        name: the parameter's.
        shape: of a sample.
        dtype: of both.
        dims: for each level, outermost first, its batch dim there; None where the samples share it.
        below: the values are indices, of a dim of this size; 0 for any values.
        order: the physical dims from the outermost in memory to the innermost; empty where they are in order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    dims: tuple[int | None, ...]
    below: int = 0
    order: tuple[int, ...] = ()

    def physical_shape(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with the batch dims."""
        shape = list(self.shape)
        for dim, size in reversed([*zip(self.dims, sizes, strict=True)]):
            if dim is not None:
                shape.insert(dim, size)
        return tuple(shape)

    def values(self, sizes: tuple[int, ...], seed: int) -> Tensor:
        """Return a physical tensor; its values are such that sums and products of few of them are exact."""
        draw = random.Random(f"{self.name} {seed}")
        shape = self.physical_shape(sizes)
        order = self.order or range(len(shape))
        count = torch.Size(shape).numel()
        if self.below:
            numbers: list[Any] = [draw.randrange(-self.below, self.below) for _ in range(count)]
        elif self.dtype is torch.bool:
            numbers = [draw.random() < 0.5 for _ in range(count)]
        elif self.dtype is torch.int64:
            numbers = [draw.randrange(-3, 5) for _ in range(count)]
        else:
            # no two are the same, and none is zero: it would hide how often it is added
            numbers = [(k - count // 2 or count) / 8 for k in draw.sample(range(count), count)]
            if self.dtype.is_complex:
                numbers = [complex(n, draw.randrange(-8, 9) / 4) for n in numbers]
        laid_out = torch.tensor(numbers, dtype=self.dtype).reshape([shape[d] for d in order])
        return laid_out.permute([[*order].index(d) for d in range(len(shape))])

    def is_apart(self) -> bool:
        """Tell whether each sample has a piece of memory for itself."""
        return not self.order and not any(self.dims) and None not in self.dims

    def sample(self, sizes: tuple[int, ...], seed: int) -> Tensor:
        """Return the first sample."""
        value = self.values(sizes, seed)
        for d in self.dims:
            value = value if d is None else value.select(d, 0)
        return value


@dataclass(frozen=True)
class Statement:
    """A line of a program, and the template that it was made of."""

    text: str
    template: str = ""

    def made(self) -> list[str]:
        """Return the names that it assigns to."""
        left, equals, _ = self.text.partition(" = ")
        return NAME.findall(left) if equals and not NAME.sub("", left).strip(", ") else []

    def mentioned(self) -> set[str]:
        """Return the names in it."""
        return set(NAME.findall(self.text))


@dataclass(frozen=True)
class Program:
    """A function of samples and how it is mapped.

    Attributes:
        inputs: its parameters.
        sizes: the batch size of each level, outermost first.
        statements: its body; they may append what they learn of memory to the list ``facts``.
        returns: names of the tensors that it returns.
        out_dim: where the batch dims of the results are to be.
        seed: of the values of the inputs.
    """

    inputs: tuple[Input, ...]
    sizes: tuple[int, ...]
    statements: tuple[Statement, ...]
    returns: tuple[str, ...]
    out_dim: int = 0
    seed: int = 0

    def levels(self) -> list[tuple[int | None, ...]]:
        """Return the in_dims of each level, outermost first."""
        return [tuple(i.dims[k] for i in self.inputs) for k in range(len(self.sizes))]

    def values(self, seed: int | None = None) -> list[Tensor]:
        """Return the inputs' physical tensors."""
        return [i.values(self.sizes, self.seed if seed is None else seed) for i in self.inputs]

    def body(self) -> str:
        """Return the function's source."""
        lines = [f"def f({', '.join(i.name for i in self.inputs)}):"]
        lines += [f"    {s.text}" for s in self.statements]
        lines += [f"    return {', '.join(self.returns)},"]
        return "\n".join(lines) + "\n"

    def function(self, facts: list[Any]) -> Callable[..., tuple[Tensor, ...]]:
        """Return the function; it appends to ``facts`` what it learns of memory."""
        namespace = names(facts)
        exec(compile(self.body(), FILE, "exec"), namespace)
        function: Callable[..., tuple[Tensor, ...]] = namespace["f"]
        return function

    def source(self) -> str:
        """Return a script that prints the mapped function's results, and the loop's."""
        mapped = "f"
        for dims in reversed(self.levels()):
            mapped = f"vmap({mapped}, in_dims={dims}, out_dims={self.out_dim})"
        loops = "".join(f" for i{k} in range({n})" for k, n in enumerate(self.sizes))
        samples = ", ".join(_sample(i) for i in self.inputs)
        return "\n".join(
            [
                "import torch",
                "import torch.nn.functional as F",
                "from vmap_core import vmap",
                "",
                "facts = []",
                "",
                "",
                *(
                    [inspect.getsource(strides).replace("x: Any", "x").replace(" -> list[int]", ""), ""]
                    * ("strides(" in self.body())
                ),
                self.body(),
                "",
                "def inputs():",
                f"    return [{', '.join(_literal(v) for v in self.values())}]",
                "",
                "",
                f"{', '.join(i.name for i in self.inputs)}, = inputs()",
                f"print({mapped}({', '.join(i.name for i in self.inputs)}), facts)",
                f"{', '.join(i.name for i in self.inputs)}, = inputs()",
                "facts.clear()",
                f"print([f({samples}){loops}], facts)",
            ]
        )


def names(facts: list[Any]) -> dict[str, Any]:
    """Return what a program finds beside its inputs."""
    return {"torch": torch, "F": torch.nn.functional, "facts": facts, "strides": strides}


def strides(x: Any) -> list[int]:
    """Return the strides that say something: not those of dims of size one, nor of an empty tensor."""
    return [s for n, s in zip(x.shape, x.stride(), strict=True) if n > 1 and x.numel()]


def _sample(i: Input) -> str:
    dims = [(k, d) for k, d in enumerate(i.dims) if d is not None]
    return i.name + "".join(f".select({d}, i{k})" for k, d in dims)


def _literal(x: Tensor) -> str:
    order = sorted(range(x.ndim), key=lambda d: -x.stride(d))
    laid_out = x.permute(order)
    if not x.numel():
        text = f"torch.zeros({tuple(laid_out.shape)}, dtype={x.dtype})"
    else:
        text = f"torch.tensor({laid_out.tolist()}, dtype={x.dtype})"
    return text if order == sorted(order) else f"{text}.permute({[order.index(d) for d in range(x.ndim)]})"
