"""The README's example runs, and gives what the loop gives."""

import linecache
import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[1] / "README.md"


def test_example():
    scope = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    linecache.cache[PAGE.name] = len(block), None, block.splitlines(keepends=True), PAGE.name  # its source is looked up
    exec(compile(block, PAGE.name, "exec"), scope)
    roots = []
    for a in scope["numbers"].tolist():
        x, steps = a, 0
        while abs(x * x - a) > 1e-4 and steps < 50:
            x, steps = (x + a / x) / 2, steps + 1
        roots.append(x)
    torch.testing.assert_close(scope["roots"], torch.tensor(roots), rtol=1e-4, atol=1e-4)
