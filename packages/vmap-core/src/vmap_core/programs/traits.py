"""What a program depends on in its arguments and in PyTorch's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..levels import tree
from ..levels.tensor import BatchedTensor
from ..torch_compat import autocast

_TENSORS = {Tensor, Parameter, BatchedTensor}


def ambient() -> tuple[Any, ...]:
    """Return the state of PyTorch that operations depend on besides their arguments."""
    state = autocast.state()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), state


def traits(x: Any) -> tuple[Any, ...]:
    """Return what a program depends on in a leaf of its arguments: of a tensor all but the values."""
    if isinstance(x, Tensor):
        if x.layout is not torch.strided or x.is_nested:
            return type(x), x.layout
        return x.shape, x.stride(), x.dtype, x.device, x.requires_grad, x.is_complex() and x.is_conj()
    if type(x) in (int, bool, str, float, complex, type(None), torch.dtype, torch.device):
        return type(x), repr(x)  # apart are 1, 1.0 and True, 0.0 and -0.0; one are nan and nan
    return type(x), id(x)


def captured_traits(x: Tensor) -> tuple[Any, ...]:
    """Return what a program depends on in a tensor from outside."""
    return x.requires_grad, x.shape, x.dtype


def unpacker(spec: Any) -> Callable[[Any, Any], Any]:
    """Return a function that takes ``(args, kwargs)`` apart: their leaves, or None for another structure than ``spec``."""
    names: dict[str, Any] = {}
    checks: list[str] = []
    leaves: list[str] = []

    def visit(spec: Any, at: str) -> bool:
        if spec is None:
            leaves.append(at)
            return True
        kind, context, children = spec
        if kind not in (tuple, list, dict):
            return False
        names[f"k{len(names)}"] = kind
        checks.append(f"type({at}) is k{len(names) - 1} and len({at}) == {len(children)}")
        if kind is not dict:
            return all(visit(child, f"{at}[{i}]") for i, child in enumerate(children))
        names[f"k{len(names)}"] = context
        checks.append(f"list({at}) == k{len(names) - 1}")
        return all(type(k) is str and visit(child, f"{at}[{k!r}]") for k, child in zip(context, children, strict=True))

    if visit(spec[2][0], "args") and visit(spec[2][1], "kwargs"):
        exec(
            f"def unpack(args, kwargs):\n    return ({', '.join([*leaves, ''])}) if {' and '.join(checks)} else None",
            names,
        )
        made: Callable[[Any, Any], Any] = names.pop("unpack")
        return made

    def flatten(args: Any, kwargs: Any) -> Any:
        found: list[Any] = []
        return found if tree.flatten((args, kwargs), found) == spec else None

    return flatten
