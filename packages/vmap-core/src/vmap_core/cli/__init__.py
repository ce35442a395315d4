"""The command line: ``vmap packs``, ``vmap rules``, ``vmap coverage``, ``vmap doctor``, ``vmap demo``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from .render import Table, show


def packs(options: argparse.Namespace) -> int:
    """List the rule packs."""
    from ..rulekit.discovery import reason
    from ..rulekit.packs import packs

    table = Table("pack", "distribution", "version", "rules", "status")
    for p in packs():
        table.add(p.name, p.distribution, p.version, p.rules, "ok" if p.error is None else f"broken: {reason(p.error)}")
    show(table, options.json)
    return 0


def rules(options: argparse.Namespace) -> int:
    """List who serves which operator."""
    from ..rulekit.packs import packs
    from .survey import survey

    names = [p.name for p in packs()]
    if options.pack not in (None, *names):
        print(f"vmap: no pack named {options.pack!r}; installed: {', '.join(names)}", file=sys.stderr)
        return 2
    found = survey(options.pattern, options.pack, everything=options.missing)
    if options.missing:
        found = [s for s in found if s.pack is None]
    table = Table("operator", "pack", "how", "rule")
    for s in found:
        table.add(s.operator, s.pack or "-", s.how, s.rule)
    if found or options.json:
        show(table, options.json)
    else:
        where = (
            f" in pack {options.pack!r}" if options.pack else " among those without a rule" if options.missing else ""
        )
        print(f"no operator matches {options.pattern!r}{where}" if options.pattern else f"no operators{where}")
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

    demo.main(options.arguments, prog="vmap demo")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    from ..rulekit.packs import _version

    top = argparse.ArgumentParser(prog="vmap", description="Looks into vmap-core and its rule packs.")
    top.add_argument("--version", action="version", version=f"vmap-core {_version('vmap-core')}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(run: Any, **kwargs: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__, **kwargs)
        made.set_defaults(run=run)
        return made

    for run in (packs, doctor):
        command(run).add_argument("--json", action="store_true", help="print JSON")
    made = command(rules)
    made.add_argument(
        "pattern", nargs="?", type=_pattern, default="",
        help="a part of the operator's name, or a regular expression; torch.linalg.solve and F.conv2d mean what they say",
    )  # fmt: skip
    which = made.add_mutually_exclusive_group()
    which.add_argument("--pack", help="only rules of this pack")
    which.add_argument("--missing", action="store_true", help="only operators that would run in the slow loop")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = command(coverage)
    made.add_argument("pattern", nargs="?", type=_pattern, default="", help="a regular expression that names operators")
    made.add_argument("--samples", type=int, default=1, metavar="N", help="samples of each (default: 1)")
    made.add_argument("-v", "--verbose", action="store_true", help="a line for each operator")
    made.add_argument("--json", action="store_true", help="print JSON")
    command(demo, add_help=False).add_argument("arguments", nargs=argparse.REMAINDER)
    return top


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: as typed; by default those of the process.

    Returns:
        The exit status: 0; 1 if there is a problem or nothing was found; 2 if something is not installed, the rule packs
        cannot be used together, or the arguments make no sense.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["demo"]:  # its own options
        options = argparse.Namespace(run=demo, arguments=arguments[1:])
    else:
        options = parser().parse_args(arguments)
    try:
        return int(options.run(options)) if options.run is doctor or _packs_are_usable(options.run) else 2
    except BrokenPipeError:  # `vmap rules | head`
        sys.stderr.close()
        return 0


def _packs_are_usable(command: Any) -> bool:
    """Tell whether the packs can be listed, or used; if not, say why. One that does not load is no hindrance."""
    from ..errors import PackConflictError
    from ..rulekit import packs as installed

    try:
        installed.packs() if command is packs else installed.current_table()
    except (PackConflictError, ValueError, ImportError) as error:
        print(f"vmap: {error}\n`vmap doctor` looks the installation over", file=sys.stderr)
        return False
    return True
