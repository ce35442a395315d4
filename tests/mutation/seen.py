"""Which tests run a line: a pytest plugin that writes it down, each test with plans of its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MOST = 40  # tests of one line, those that were first to run it


class Seen:
    """Writes down, for each line of some files, the tests that run it, and how long each test takes."""

    def __init__(self, files: list[Path], out: Path) -> None:
        self.files = {str(f) for f in files}
        self.out = out
        self.lines: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self.hits: set[tuple[str, int]] = set()

    def _called(self, frame: Any, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in self.files else None

    def _line(self, frame: Any, event: str, arg: Any) -> Any:
        self.hits.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        """Trace a test."""
        from vmap_core.rulekit.packs import current_table

        table = current_table()
        for known in (table, *table.likes.values(), table.checked()):
            known.plans.clear()
            known.autocast_plans.clear()
        self.hits = set()
        start = time.perf_counter()
        sys.settrace(self._called)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = time.perf_counter() - start
            for file, line in self.hits:
                tests = self.lines.setdefault(f"{file}:{line}", [])
                if len(tests) < MOST:
                    tests.append(item.nodeid)
            if len(self.seconds) % 100 == 0:  # so that not all is lost where it is broken off
                self.write()

    def pytest_sessionfinish(self) -> None:
        """Write it all down."""
        self.write()

    def write(self) -> None:
        """Write down what is known so far."""
        self.out.write_text(json.dumps({"lines": self.lines, "seconds": self.seconds}))
