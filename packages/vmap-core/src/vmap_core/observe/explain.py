"""`explain`: what a mapped function does, operation by operation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import function_name
from .trace import Operation, TensorInfo, recording


@dataclass(frozen=True)
class Report:
    """What a mapped call did: ``str(report)``, ``report.to_dict()``, ``report.to_html()``; a notebook shows the last.

    Attributes:
        name: the function's name.
        operations: what it called, in order; what their rules called in turn is in their ``parts``.
        result: what the call returned.
    """

    name: str
    operations: list[Operation]
    result: Any

    @property
    def loops(self) -> list[Operation]:
        """The operations that ran once per sample."""
        return [o for _, o in self._walk() if o.loop is not None]

    @property
    def seconds(self) -> float:
        """Time spent in operations."""
        return sum(o.seconds for o in self.operations)

    @property
    def nbytes(self) -> int:
        """Memory that the results of operations own, intermediate ones included; views own none."""
        return sum(o.nbytes for o in self.operations)

    def totals(self) -> list[tuple[str, int, float, int]]:
        """Return name, number of calls, seconds and bytes of each operator that the function calls, slowest first."""
        sums: dict[str, tuple[int, float, int]] = {}
        for o in self.operations:
            count, seconds, nbytes = sums.get(o.name, (0, 0.0, 0))
            sums[o.name] = (count + 1, seconds + o.seconds, nbytes + o.nbytes)
        return sorted(((name, *s) for name, s in sums.items()), key=lambda row: -row[2])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as dicts, lists, strings and numbers, fit for JSON."""
        return {
            "name": self.name, "seconds": self.seconds, "nbytes": self.nbytes, "loops": len(self.loops),
            "operations": [_as_dict(o) for o in self.operations],
        }  # fmt: skip

    def __str__(self) -> str:
        """Return a table: a line for each operation, the parts of one indented below it."""
        head = ("operation", "served by", "one sample's shapes", "physical result", "time", "memory", "called at")
        rows = [head]
        for indent, o in self._walk():
            mark = "! " if o.loop is not None else ""
            rows.append(("  " * indent + mark + _named(o), _served(o), _logical(o), _physical(o),
                         _share(o.seconds, self.seconds), _size(o.nbytes), _place(o.location)))  # fmt: skip
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        right = (4, 5)
        lines = [
            "  ".join(
                c.rjust(w) if k in right else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines.insert(1, "-" * sum(widths, 2 * (len(head) - 1)))
        lines = [line.rstrip() for line in [self._summary(), "", *lines]]
        notes = [f"! {o.loop}" for o in self.loops]
        return "\n".join([*lines, *([""] if notes else []), *dict.fromkeys(notes)])

    def to_html(self) -> str:
        """Return the report as a page's fragment, without anything from elsewhere."""
        import html  # with all names of characters: in every process, for those who ask for a page

        body = []
        for indent, o in self._walk():
            share = 100 * o.seconds / self.seconds if self.seconds and not indent else 0
            cells = [
                f'<td style="padding-left:{1 + indent}em">{html.escape(_named(o))}</td>',
                *(f"<td>{html.escape(text)}</td>" for text in (_served(o), _logical(o), _physical(o))),
                f'<td class="bar" style="background-size:{share:.1f}% 100%">{_time(o.seconds)}</td>',
                f"<td>{_size(o.nbytes)}</td><td>{html.escape(_place(o.location))}</td>",
            ]
            note = f' class="loop" title="{html.escape(o.loop)}"' if o.loop is not None else ""
            body.append(f"<tr{note}>{''.join(cells)}</tr>")
        notes = "".join(f"<p class='note'>{html.escape(n)}</p>" for n in dict.fromkeys(o.loop for o in self.loops) if n)
        heads = ("operation", "served by", "one sample's shapes", "physical result", "time", "memory", "called at")
        head = "".join(f"<th>{h}</th>" for h in heads)
        return (
            f"<div class='vmap-report'><style>{_STYLE}</style><p><b>{html.escape(self._summary())}</b></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{notes}</div>"
        )

    _repr_html_ = to_html

    def _walk(self) -> Iterator[tuple[int, Operation]]:
        for o in self.operations:
            yield from o.walk()

    def _summary(self) -> str:
        loops = len(self.loops)
        loop = f"{loops} of them once per sample" if loops else "none of them in a loop"
        count = f"{len(self.operations)} operation{'s' if len(self.operations) != 1 else ''}"
        return f"{self.name}: {count}, {loop}; {_time(self.seconds)}, {_size(self.nbytes)} of results"


def explain(func: Callable[..., Any]) -> Callable[..., Report]:
    """Explain what a mapped function does: which rule serves each operation, with what shapes, at what cost.

    Args:
        func: a function that `vmap` returned, or any function that calls such ones; nested levels are shown.

    Returns:
        A function of the same arguments that runs it once and returns a `Report`.

    Operations that run in the slow loop are marked ``!``, with the place in your code and what to do. Times are those of
    one run, and of the whole of an operation; the work of the first call of a signature is left out, that of PyTorch's
    own first calls is not. What the autograd engine does in a backward pass counts as time of ``autograd.grad``.

    Examples:
        >>> import torch
        >>> from vmap_core import explain, vmap
        >>> report = explain(vmap(lambda x, w: torch.tanh(w @ x), in_dims=(0, None)))(torch.randn(8, 3), torch.randn(4, 3))
        >>> [(o.name, o.pack) for o in report.operations]
        [('torch.Tensor.matmul', 'core.matmul'), ('torch.tanh', 'core (by tag)')]
        >>> report.operations[0].outputs[0].shape, report.operations[0].outputs[0].physical
        ((4,), (8, 4))
        >>> report.loops
        []
    """

    @functools.wraps(func)
    def explained(*args: Any, **kwargs: Any) -> Report:
        with recording() as trace:
            result = func(*args, **kwargs)
        return Report(function_name(func), trace.operations, result)

    return explained


def _as_dict(o: Operation) -> dict[str, Any]:
    def tensor(t: TensorInfo) -> dict[str, Any]:
        return {"shape": list(t.shape), "physical": list(t.physical), "bdim": t.bdim, "dtype": str(t.dtype)}

    return {
        "name": o.name, "level": o.level, "depth": o.depth, "pack": o.pack, "rule": o.rule, "location": o.location,
        "inputs": [tensor(t) for t in o.inputs], "outputs": [tensor(t) for t in o.outputs], "seconds": o.seconds,
        "nbytes": o.nbytes, "loop": o.loop, "parts": [_as_dict(p) for p in o.parts],
    }  # fmt: skip


def _named(o: Operation) -> str:
    return (f"level {o.depth + 1}: " if o.depth else "") + _short(o.name)


def _short(name: str) -> str:
    return name.removeprefix("torch.").replace("nn.functional.", "F.")


def _served(o: Operation) -> str:
    rule = o.rule.rpartition(".")[2]
    batched = any(t.bdim is not None for t in (*o.inputs, *o.outputs))
    if not batched and not o.parts:
        return "once, for all samples"
    return f"{o.pack}: {rule}" if rule and rule not in o.pack else o.pack


def _dims(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _logical(o: Operation) -> str:
    given = " ".join(_dims(t.shape) + ("" if t.bdim is not None else "*") for t in o.inputs)
    return f"{given} -> {' '.join(_dims(t.shape) for t in o.outputs)}"


def _physical(o: Operation) -> str:
    return " ".join(f"{list(t.physical)}" + (f" at {t.bdim}" if t.bdim is not None else "") for t in o.outputs)


def _place(location: str) -> str:
    path, _, line = location.rpartition(":")
    return f"{path.rpartition('/')[2]}:{line}" if path else location


def _share(seconds: float, total: float) -> str:
    return f"{_time(seconds)} {100 * seconds / total if total else 0:3.0f}%"


def _time(seconds: float) -> str:
    return (
        f"{1e6 * seconds:.0f} us"
        if seconds < 1e-3
        else f"{1e3 * seconds:.1f} ms"
        if seconds < 1
        else f"{seconds:.2f} s"
    )


def _size(nbytes: int) -> str:
    if nbytes < 1024:
        return f"{nbytes} B"
    for unit in ("KiB", "MiB", "GiB"):
        nbytes_in_unit = nbytes / 1024
        if nbytes_in_unit < 1024 or unit == "GiB":
            return f"{nbytes_in_unit:.1f} {unit}"
        nbytes = nbytes // 1024
    return ""


_STYLE = (
    ".vmap-report{font:13px/1.5 system-ui,sans-serif}.vmap-report table{border-collapse:collapse}"
    ".vmap-report th,.vmap-report td{text-align:left;padding:.1em 1em;border-bottom:1px solid #8884;white-space:nowrap;"
    "font-variant-numeric:tabular-nums}"
    ".vmap-report .bar{background:linear-gradient(#4a90d955,#4a90d955) no-repeat left;min-width:9em}"
    ".vmap-report .loop td:first-child::before{content:'! ';color:#c00;font-weight:bold}.vmap-report .note{color:#c00}"
)
