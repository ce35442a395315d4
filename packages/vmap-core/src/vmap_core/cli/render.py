"""Tables in a terminal: by rich where it is installed and someone looks, else as plain text."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any


class Table:
    """Rows under column heads."""

    def __init__(self, *heads: str) -> None:
        """Make an empty table."""
        self.heads = heads
        self.rows: list[tuple[Any, ...]] = []

    def add(self, *cells: Any) -> None:
        """Add a row."""
        self.rows.append(cells)


def show(table: Table, as_json: bool = False) -> None:
    """Print a table."""
    if as_json:
        print(json.dumps([dict(zip(table.heads, row, strict=True)) for row in table.rows], indent=1))
    elif sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        _show_rich(table)
    else:
        print(plain(table))


def plain(table: Table) -> str:
    """Return a table as text, numbers to the right."""
    rows = [table.heads, *(tuple(map(str, row)) for row in table.rows)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.heads))]
    right = [
        all(isinstance(row[k], int | float) for row in table.rows) and bool(table.rows) for k in range(len(widths))
    ]

    def line(row: tuple[Any, ...]) -> str:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "-" * sum(widths, 2 * (len(widths) - 1)), *map(line, rows[1:])])


def _show_rich(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(header_style="bold", box=None, pad_edge=False)
    for k, head in enumerate(table.heads):
        number = bool(table.rows) and all(isinstance(row[k], int | float) for row in table.rows)
        drawn.add_column(head, justify="right" if number else "left", overflow="fold", no_wrap=k == 0)
    colors = {"ok": "green", "clean": "green", "loop": "yellow", "-": "yellow", "error": "red", "differs": "bold red"}
    for row in table.rows:
        drawn.add_row(
            *(Text(str(c), style=colors.get(str(c), "red" if str(c).startswith("broken") else "")) for c in row)
        )
    Console().print(drawn)
