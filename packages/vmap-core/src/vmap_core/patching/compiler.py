"""What torch.compile is told about transforms, as soon as it is imported."""

from __future__ import annotations

from typing import Any

from .registry import patch


@patch(
    "torch._dynamo.trace_rules.lookup",
    "The compiler asks it how to follow a function: a transform it is to take for one operator of its graph.",
    waits_for="torch._dynamo",
)
def show_transforms(native: Any) -> Any:
    """Look transforms up first."""
    try:
        from ..torch_compat.dynamo import kind_of
    except (ImportError, AttributeError):  # of a PyTorch that nobody has tried: it breaks its graph at a transform
        return native

    def lookup(obj: Any) -> Any:
        return kind_of(obj) or native(obj)

    return lookup
