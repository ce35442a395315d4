"""The extension's functions: how each is called, and what is known of it."""

from __future__ import annotations

import re
from typing import Any

from tests.extension.build import SOURCE

NAMES = re.findall(r"F\((\w+)\)", SOURCE.read_text())
KEEP = ("keep", "keep_list", "keep_without_gil")
KEPT = ("number_kept", "use_kept", "give_kept", "drop")
CALLS = [name for name in NAMES if name not in (*KEEP, *KEPT)]

# What C++ reads in a tensor's own fields, without asking: nothing can be refused there. docs/reliability.md says so.
LIMITS = {
    "dim": 0, "dtype": "long unsigned int", "is_floating_point": False, "requires_grad": False, "element_size": 8,
    "storage": False, "is_defined": True,
}  # fmt: skip
# What complains in words of its own of what it has read there.
OWN_WORDS = {
    "size": "tensor has no dimensions", "data_ptr": "Cannot access data pointer",
    "mutable_data_ptr": "Cannot access data pointer", "typed_data_ptr": "expected scalar type Float but found UInt64",
    "typed_const_data_ptr": "expected scalar type Float but found UInt64", "accessor": "expected 1 dims but tensor has 0",
    "checked_loop": "expected float", "matmul": "need to be at least 1D", "in_a_thread": "without (setting an )?exception( set)?",
}  # fmt: skip


def call(cpp: Any, name: str, x: Any) -> Any:
    """Call a function of the extension with as many arguments as it takes."""
    function = getattr(cpp, name)
    if name in ("cat", "keep_list"):
        return function([x, x])
    if name in ("add", "matmul"):
        return function(x, x)
    if name in ("mul_", "add_out", "copy_", "index_put_"):
        return function(x.clone(), *[x][: name != "index_put_"])
    return function(lambda t: t * 3, x) if name.startswith("call_back") else function(x)


def outcome(cpp: Any, name: str, x: Any) -> Any:
    """Return what a call gives, or the text of its error."""
    try:
        return call(cpp, name, x)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
