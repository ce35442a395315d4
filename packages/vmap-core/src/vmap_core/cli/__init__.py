"""The command line: ``vmap packs``, ``vmap rules``, ``vmap coverage``, ``vmap doctor``, ``vmap demo``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .render import Table, show


def packs(options: argparse.Namespace) -> int:
    """List the rule packs."""
    from .._packs import packs

    table = Table("pack", "distribution", "version", "rules", "status")
    for p in packs():
        table.add(p.name, p.distribution, p.version, p.rules, "ok" if p.error is None else f"broken: {p.error!r}")
    show(table, options.json)
    return 0


def rules(options: argparse.Namespace) -> int:
    """List who serves which operator."""
    from .survey import survey

    found = survey(options.pattern, options.pack, everything=options.missing)
    if options.missing:
        found = [s for s in found if s.pack is None]
    table = Table("operator", "pack", "how", "rule")
    for s in found:
        table.add(s.operator, s.pack or "-", s.how, s.rule)
    show(table, options.json)
    if not found and not options.json:
        print(f"nothing matches {options.pattern!r}" + (f" in pack {options.pack!r}" if options.pack else ""))
    return 0 if found or options.missing else 1


def coverage(options: argparse.Namespace) -> int:
    """Map every operator of PyTorch's own test database, and compare with the loop."""
    from .opinfo import Unavailable, measure, per_pack

    try:
        results = measure(options.pattern, options.samples)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 2
    if options.verbose:
        table = Table("operator", "pack", "verdict", "detail")
        for r in results:
            table.add(r.operator, r.pack, r.verdict, r.detail)
        show(table, options.json)
    else:
        show(per_pack(results), options.json)
    return 1 if any(r.verdict == "differs" for r in results) else 0


def doctor(options: argparse.Namespace) -> int:
    """Look the installation over."""
    from .health import examine

    findings = examine()
    if options.json:
        print(json.dumps([{"level": f.level, "text": f.text, "advice": f.advice} for f in findings], indent=1))
    else:
        for f in findings:
            print(f"{f.level:<8} {f.text}" + (f"\n{'':8} {f.advice}" if f.advice else ""))
    return 1 if any(f.level == "problem" for f in findings) else 0


def demo(options: argparse.Namespace) -> int:
    """Run the three uses of vmap on real data, beside the loop."""
    from .. import demo

    demo.main(options.arguments)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    top = argparse.ArgumentParser(prog="vmap", description="Looks into vmap-core and its rule packs.")
    commands = top.add_subparsers(dest="command", required=True)

    def command(run: Any, **kwargs: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__, **kwargs)
        made.set_defaults(run=run)
        return made

    for run in (packs, doctor):
        command(run).add_argument("--json", action="store_true", help="print JSON")
    made = command(rules)
    made.add_argument("pattern", nargs="?", default="", help="a part of the operator's name, or a regular expression")
    made.add_argument("--pack", help="only rules of this pack")
    made.add_argument(
        "--missing", action="store_true", help="only operators of PyTorch that would run in the slow loop"
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    made = command(coverage)
    made.add_argument("pattern", nargs="?", default="", help="a regular expression that names operators")
    made.add_argument("--samples", type=int, default=1, help="samples of each (default: 1)")
    made.add_argument("-v", "--verbose", action="store_true", help="a line for each operator")
    made.add_argument("--json", action="store_true", help="print JSON")
    command(demo, add_help=False).add_argument("arguments", nargs=argparse.REMAINDER)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: as typed; by default those of the process.

    Returns:
        The exit status: 0; 1 if there is a problem or nothing was found; 2 if something is not installed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["demo"]:  # its own options
        return demo(argparse.Namespace(arguments=arguments[1:]))
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BrokenPipeError:  # `vmap rules | head`
        sys.stderr.close()
        return 0
