"""Programs drawn at random: of what is drawn, a statement stays that runs on one sample and gives finite numbers."""

from __future__ import annotations

import random
import re
import warnings
from typing import Any

import torch
from torch import Tensor

from .program import Input, Program, Statement, names
from .templates import EXPRESSIONS, STATEMENTS

DTYPES = {
    torch.float32: 48, torch.float64: 14, torch.int64: 16, torch.bool: 10, torch.bfloat16: 5, torch.complex64: 5,
}  # fmt: skip
LARGEST = 1e4  # of the numbers in a program: beyond, what differs is rounding


def program(seed: int) -> Program:
    """Return the program of a seed."""
    draw = Draw(random.Random(seed))
    inputs = draw.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "An output with one or more elements was resized")
        statements, made = draw.statements(inputs, draw.random.randint(3, 8))
    out_dim = draw.weighted({0: 9, -1: 1})
    return Program(inputs, draw.batch, tuple(statements), tuple(made), out_dim, seed)


class Draw:
    """What is drawn for one program.

    Attributes:
        random: the source of it all.
        batch: the batch size of each level.
        sizes: of dims.
        known: the tensors so far, by name, of one sample.
        shared: names of inputs that all samples share.
        near: the tensor that dims, shapes and indices are of.
        written: the statement writes to it.
    """

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.known: dict[str, Tensor] = {}
        self.shared: set[str] = set()
        self.near = torch.ones(())
        self.written = False
        depth = self.weighted({1: 70, 2: 22, 3: 8})
        self.batch = tuple(self.weighted({0: 1, 1: 3, 2: 8, 3: 5}) for _ in range(depth))
        self.sizes = [source.choice((1, 2, 3, 5)), source.choice((1, 2, 2, 3, 3)), 0 if source.random() < 0.1 else 2]

    def weighted(self, weights: dict[Any, int]) -> Any:
        """Return a key of a dict of weights."""
        return self.random.choices(list(weights), list(weights.values()))[0]

    # the inputs

    def inputs(self) -> tuple[Input, ...]:
        """Return inputs; at each level one at least has a batch dim."""
        count, depth = self.random.randint(1, 4), len(self.batch)
        found = [self.input(f"x{k}", depth) for k in range(count)]
        for level in range(depth):
            if all(i.dims[level] is None for i in found):
                k = self.random.randrange(count)
                found[k] = self._with_dims(found[k], tuple(0 if n == level else d for n, d in enumerate(found[k].dims)))
        return tuple(found)

    def input(self, name: str, depth: int) -> Input:
        """Return an input."""
        below = self.random.choice(self.sizes) if self.random.random() < 0.16 else 0
        dtype = torch.int64 if below else self.weighted(DTYPES)
        rank = self.weighted({0: 3, 1: 3, 2: 1}) if below else self.weighted({0: 10, 1: 26, 2: 40, 3: 18, 4: 6})
        shape = tuple(self.random.choice(self.sizes) for _ in range(rank))
        mapped = [self.random.random() < 0.8 for _ in range(depth)]
        dims: list[int | None] = [None] * depth
        for k in reversed(range(depth)):
            if mapped[k]:
                dims[k] = 0 if self.random.random() < 0.4 else self.random.randint(0, rank)
                rank += 1
        return self._with_dims(Input(name, shape, dtype, (), below), tuple(dims))

    def _with_dims(self, i: Input, dims: tuple[int | None, ...]) -> Input:
        order = list(range(len(i.shape) + len(dims) - dims.count(None)))
        if self.random.random() < 0.25:
            self.random.shuffle(order)
        return Input(i.name, i.shape, i.dtype, dims, i.below, tuple(order) if order != sorted(order) else ())

    # the statements

    def statements(self, inputs: tuple[Input, ...], count: int) -> tuple[list[Statement], list[str]]:
        """Return statements, and the names of the tensors that they make."""
        self.start(inputs)
        body: list[Statement] = []
        leaves: list[str] = []
        grad = self.random.random() < 0.8  # differentiate by grad(); else by backward(), for leaves
        if self.random.random() < 0.3:
            for i in inputs:
                if i.dtype.is_floating_point and self.random.random() < 0.7:
                    name = f"v{len(self.known)}"
                    made = self.random.choice(
                        (f"{i.name}.detach()", f"{i.name}.clone()", f"({i.name} * 1)")[: 3 if grad else 1]
                    )
                    self.added(inputs, body, Statement(f"{name} = {made}.requires_grad_()", "requires_grad_()"))
                    leaves.append(name)
        for _ in range(12 * count):
            statement = self._statement()
            if statement is not None:
                self.added(inputs, body, statement)
            if len(body) >= count:
                break
        if leaves:
            self._gradients(inputs, body, leaves, grad)
        return body, [name for name in self.known if name[0] == "v"] or [inputs[0].name]

    def added(self, inputs: tuple[Input, ...], body: list[Statement], statement: Statement) -> bool:
        """Add a statement to the program if it runs, and all numbers stay moderate."""
        mixed = [self.known[i.name] for i in inputs if not i.is_apart()]
        viewed = [self.known[name] for name in statement.mentioned() & set(self.known)]
        if "as_strided" in statement.text and any(_share(a, b) for a in mixed for b in viewed):
            return False  # it would see other samples
        if asks(statement) and (0 in self.batch or any("_scatter(" in s.text for s in body)):
            return False  # what is not kept, and of no sample nothing: docs/design.md, How samples lie in memory
        versions = {name: x._version for name, x in self.known.items()}
        shapes = [x.shape for x in self.known.values()]  # out= of another shape is resized, and what it shares is not
        namespace = {**names([]), **self.known}
        try:
            exec(statement.text, namespace)
            made = {name: namespace[name] for name in statement.made()}
            good = all(_is_moderate(x) for x in (*made.values(), *self.known.values()))
            good = good and ("out=" not in statement.text or shapes == [x.shape for x in self.known.values()])
        except Exception:
            good = False
        if good:
            self.known.update(made)
            body.append(statement)
        elif any(x._version != versions[name] for name, x in self.known.items()):
            self._run(inputs, body)
        return good

    def start(self, inputs: tuple[Input, ...]) -> None:
        """Let the inputs be what is known."""
        self.shared = {i.name for i in inputs if not any(d is not None for d in i.dims)}
        self._run(inputs, [])

    def _run(self, inputs: tuple[Input, ...], body: list[Statement]) -> None:
        """Compute everything from the start, on the first sample."""
        sizes = tuple(max(n, 1) for n in self.batch)
        self.known = {i.name: i.sample(sizes, 0) for i in inputs}
        namespace = {**names([]), **self.known}
        for statement in body:
            exec(statement.text, namespace)
            self.known.update({name: namespace[name] for name in statement.made()})

    def _statement(self) -> Statement | None:
        family = self.weighted(EXPRESSIONS | STATEMENTS)
        return self.filled(self.random.choice(family), family in EXPRESSIONS)

    def filled(self, template: str, assigned: bool) -> Statement | None:
        """Return a statement made of a template; None where there is no such tensor, or no such dim."""
        self.written = "{w}" in template
        try:
            text = re.sub(r"{(\w+)}", lambda m: str(getattr(self, f"a_{m[1]}")()), template)
        except (IndexError, ValueError):
            return None
        return Statement(f"v{len(self.known)} = {text}" if assigned else text, template)

    def _gradients(self, inputs: tuple[Input, ...], body: list[Statement], leaves: list[str], grad: bool) -> None:
        """Add statements that differentiate what has been made."""
        made = [name for name, x in self.known.items() if x.requires_grad and name not in leaves]
        if not made:
            return
        total = " + ".join(
            f"({name}{'.abs()' if self.known[name].is_complex() else '.float()'} ** 2).sum()"
            for name in self.random.sample(made, min(len(made), 2))
        )
        first = len(self.known)
        if not grad:
            if self.added(inputs, body, Statement(f"({total}).backward(retain_graph=True)", "backward()")):
                for k, leaf in enumerate(leaves):
                    self.added(inputs, body, Statement(f"v{first + k} = {leaf}.grad", "{x}.grad"))
            return
        again = self.random.choice((", create_graph=True", ", retain_graph=True", ""))
        found = ", ".join(f"v{first + k}" for k in range(len(leaves)))
        text = f"{found}, = torch.autograd.grad({total}, ({', '.join(leaves)},), materialize_grads=True{again})"
        if self.added(inputs, body, Statement(text, "grad")) and "create" in again:
            text = f"v{first + len(leaves)}, = torch.autograd.grad((v{first} ** 2).sum(), ({leaves[0]},), materialize_grads=True)"
            self.added(inputs, body, Statement(text, "grad of grad"))

    # what stands in braces

    def a_x(self) -> str:
        """Return a tensor's name: a recent one, more often."""
        known = list(self.known)
        name = known[-self.random.randint(1, 3) :][0] if self.random.random() < 0.6 else self.random.choice(known)
        self.near = self.known[name]
        return name

    def a_w(self) -> str:
        """Return the name of a tensor to write to: seldom one that all samples share."""
        name = self.a_x()
        while name in self.shared and self.random.random() < 0.97 and len(self.known) > len(self.shared):
            name = self.a_x()
        return name

    def a_y(self) -> str:
        """Return the name of any tensor: more often one that fits, and now and then a number in its place."""
        if self.random.random() < 0.03:
            return self.a_number()
        # What is written to may be read as well, but not by another view: in which order is not told.
        known = {n: x for n, x in self.known.items() if x is self.near or not (self.written and _share(x, self.near))}
        fit = [name for name, x in known.items() if _fit(x.shape, self.near.shape)]
        return self.random.choice(fit if fit and self.random.random() < 0.7 else list(known))

    def a_z(self) -> str:
        """Return the name of a tensor that shares no memory with the one before: where it matters in which order is written."""
        return self.random.choice([name for name, x in self.known.items() if not _share(x, self.near)])

    def a_i(self) -> str:
        """Return an index tensor: one that is known, or as a literal."""
        known = [name for name, x in self.known.items() if x.dtype is torch.int64 and x.ndim < 3]
        if known and self.random.random() < 0.8:
            return self.random.choice(known)
        size = self.random.choice(self.near.shape or [1])
        return f"torch.tensor({[self._place(size) for _ in range(self.random.randint(1, 3))]})"

    def a_b(self) -> str:
        """Return a mask: one that is known, what is greater than zero, or a literal."""
        known = [name for name, x in self.known.items() if x.dtype is torch.bool]
        if known and self.random.random() < 0.5:
            return self.random.choice(known)
        if self.random.random() < 0.5:
            return f"({self.a_y()} > 0)"
        return f"torch.tensor({self._mask(self.near.shape[-1] if self.near.ndim else 1)})"

    def a_d(self) -> int:
        """Return a dim."""
        return self.random.randint(-self.near.ndim, self.near.ndim)

    def a_dims(self) -> tuple[int, ...]:
        """Return all dims, in another order."""
        return tuple(self.random.sample(range(self.near.ndim), self.near.ndim))

    def a_n(self) -> int:
        """Return a small number of things."""
        return self.random.choice((1, 2, 2, 3))

    a_more = a_n

    def a_k(self) -> int:
        """Return a small whole number."""
        return self.random.choice((0, 0, 1, -1, 2))

    def a_number(self) -> str:
        """Return a number of any type."""
        return self.random.choice(
            ("2", "-1", "3", "0.5", "1.5", "-2.5", "True", "1j" if self.random.random() < 0.3 else "1")
        )

    def a_dtype(self) -> str:
        """Return a dtype."""
        return str(self.weighted(DTYPES))

    def a_literal(self) -> tuple[int, ...]:
        """Return any shape."""
        return tuple(self.random.choice(self.sizes) for _ in range(self.random.randint(0, 3)))

    def a_shape(self) -> tuple[int, ...]:
        """Return a shape with as many elements, or the same."""
        if self.random.random() < 0.2:
            return tuple(self.near.shape)
        factors = [n for p in self.near.shape for n in (p,) if n != 1] or [1]
        self.random.shuffle(factors)
        while len(factors) > 1 and self.random.random() < 0.5:
            factors.append(factors.pop() * factors.pop(0))
        if self.random.random() < 0.4:
            factors.insert(self.random.randint(0, len(factors)), 1)
        return tuple(factors)

    def a_index(self) -> str:
        """Return an index expression."""
        parts: list[str] = []
        rank, used = self.near.ndim, 0
        while used < rank and self.random.random() < 0.75:
            size = self.near.shape[used]
            kind = self.weighted({"int": 5, "slice": 6, "all": 3, "tensor": 4, "list": 1, "mask": 2, "bool": 1})
            if kind == "bool":
                parts.append("True")
                continue
            used += 1
            if kind == "int":
                parts.append(str(self._place(size)))
            elif kind == "slice":
                start, stop, step = (self.random.choice(("", "", "1", "-1", "2")) for _ in range(3))
                parts.append(f"{start}:{stop}" + (f":{step}" if step in ("1", "2") else ""))
            elif kind == "all":
                parts.append(":")
            elif kind == "tensor":
                parts.append(self.a_i())
            elif kind == "list":
                parts.append(str([self._place(size) for _ in range(2)]))
            else:
                known = [name for name, x in self.known.items() if x.dtype is torch.bool and x.shape == (size,)]
                parts.append(self.random.choice([*known, f"torch.tensor({self._mask(size)})"]))
        for extra in ("...", "None"):
            if self.random.random() < 0.15:
                parts.insert(self.random.randint(0, len(parts)), extra)
        return ", ".join(parts) or "..."

    def _place(self, size: int) -> int:
        return self.random.randint(-size, size - 1)

    def _mask(self, size: int) -> list[bool]:
        return [self.random.random() < 0.6 for _ in range(size)]


def _fit(a: Any, b: Any) -> bool:
    """Tell whether shapes broadcast against each other."""
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b), strict=False))


def asks(statement: Statement) -> bool:
    """Tell whether a statement asks how a tensor lies in memory."""
    return any(word in statement.text for word in ("strid", "contiguous"))


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _is_moderate(x: Any) -> bool:
    if not isinstance(x, Tensor):
        raise TypeError(type(x))
    if x.dtype is torch.bool:
        return x.numel() <= 400
    return x.numel() <= 400 and bool((x.detach().abs() <= LARGEST).all())
