"""The README's example runs, and gives what the loop gives."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[1] / "README.md"


def test_example():
    scope = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    exec(compile(block, PAGE.name, "exec"), scope)
    samples = [scope["log_density"](c, p) for c, p in zip(scope["covariances"], scope["points"], strict=True)]
    got = scope["vmap"](scope["log_density"])(scope["covariances"], scope["points"])
    torch.testing.assert_close(got, torch.stack(samples))
