"""The table of docs/reliability.md: ``python -m tests.reliability [TOPIC ...]``, or ``./run reliability``."""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.reliability import extension, interrupts, leaks, packs, threads, walk
from tests.reliability.rows import Row

TOPICS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "extension": extension.rows,
    "walk": walk.rows,
    "threads": threads.rows,
    "interrupts": interrupts.rows,
    "leaks": leaks.rows,
    "packs": packs.rows,
}
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)


def _rows(topic: str, options: argparse.Namespace) -> Iterator[Row]:
    if topic == "walk":
        return walk.rows(options.quick, options.seconds, options.seed)
    return TOPICS[topic](options.quick)


def main(arguments: list[str] | None = None) -> int:
    """Try everything and print the table; return the exit status: whether all rows are good."""
    parser = argparse.ArgumentParser(prog="./run reliability", description=__doc__.partition(":")[0])
    parser.add_argument("topics", nargs="*", help=f"of {', '.join(TOPICS)}; without: all")
    parser.add_argument("--quick", action="store_true", help="a little of each: to see that it runs")
    parser.add_argument("--page", nargs="?", const=str(PAGE), metavar="FILE", help="also write the table to the page")
    parser.add_argument("--seconds", type=float, metavar="N", help="walk so long at most; without: to the end")
    parser.add_argument("--seed", type=int, default=0, help="of the walk")
    options = parser.parse_args(arguments)
    unknown = set(options.topics) - {*TOPICS}
    if unknown:
        parser.error(f"no such topic: {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    lines = [
        f"{datetime.date.today()}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}.",
        "",
        "| tried | times | what came out |",
        "| --- | ---: | --- |",
    ]
    print("\n".join(lines), flush=True)
    good = True
    for topic in options.topics or TOPICS:
        for tried, times, result, fine in _rows(topic, options):
            lines.append(f"| {tried} | {times:,} | {'' if fine else '**fails**: '}{result.replace('|', '/')} |")
            print(lines[-1], flush=True)
            good = good and fine
    if options.page:
        page = Path(options.page)
        text = "\n".join(lines) + "\n"
        page.write_text(_TABLE.sub(lambda _: text, page.read_text()))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
