"""What torch.compile is told about transforms, as soon as it is imported."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from ..torch_compat.one_graph import seen_as
from ..transform import one_graph as one_graph
from .registry import patch


@patch(
    "torch._dynamo.trace_rules.lookup_inner",
    "The compiler asks it how to follow a function: a transform it is to take for one operator of its graph.",
    waits_for="torch._dynamo",
)
def show_transforms(native: Any) -> Any:
    """Look transforms up first."""
    skipped = native.__globals__["SkipFunctionVariable"]
    try:
        from ..torch_compat.dynamo import kind_of
    except (ImportError, AttributeError):  # a PyTorch that nobody has tried: the graph breaks at a transform

        def kind_of(function: FunctionType) -> Any:
            return skipped if function in seen_as or "__transform__" in function.__dict__ else None

    def lookup_inner(
        obj: Any, name: Any = None, filename: Any = None, is_direct_call: bool = True, reasons: set[str] | None = None
    ) -> Any:
        kind = kind_of(obj) if type(obj) is FunctionType else None
        if kind is None:
            return native(obj, name, filename, is_direct_call, reasons)
        if reasons is None:
            return kind
        reasons.add("a transform of vmap_core, which cannot be followed")  # as a bound method, say
        return skipped

    return lookup_inner
