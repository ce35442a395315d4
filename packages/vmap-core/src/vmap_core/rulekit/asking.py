"""What an operator refuses, its rule refuses: the operator itself is asked, once for each signature of a sample.

A rule that says an operator in others has their checks, not its own: it broadcasts where the operator does not, promotes
types that the operator refuses, or takes one more dim for a batch. So the operator is called on zeros like one sample's
tensors, and what it raises is raised. Tensors without memory (the meta device) would cost less, but for half of the
operators their kernels there let pass what the others refuse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..torch_compat.state import initial_state


def asking(function: Callable[..., Any], op: Any, logical: bool) -> Callable[..., Any]:
    """Return a rule that asks its operator first; what a logical one returns has the operator's dtype.

    Args:
        function: the rule.
        op: the operator; none that draws, or needs certain values to work.
        logical: the rule takes BatchedTensors, and no batch dims.
    """
    ask = asker(op)

    @functools.wraps(function)
    def asked(info: Any, *args: Any, **kwargs: Any) -> Any:
        if not logical:
            ask(args[0], args[1:], kwargs)
            return function(info, *args, **kwargs)
        dtype = ask((None,) * len(args), args, kwargs)
        out = function(info, *args, **kwargs)
        if dtype is None or not isinstance(out, Tensor) or out.dtype == dtype:
            return out
        with info.pushed():  # its parts promote as the operator does not
            return out.to(dtype)

    return asked


def asker(op: Any) -> Callable[[Any, Any, Any], torch.dtype | None]:
    """Return what calls an operator on zeros like a sample's, the first time with such: given batch dims, args, kwargs.

    It returns the dtype of the result, where that is one tensor.
    """
    known: dict[Any, torch.dtype | None] = {}

    def ask(dims: Any, args: Any, kwargs: Any) -> torch.dtype | None:
        if kwargs:
            args = (*args, kwargs)
        dims = (*dims, *(None,) * (len(args) - len(dims)))
        try:
            key = tuple([_signature(a, d) for a, d in zip(args, dims, strict=True)])
            if key in known:
                return known[key]
        except TypeError:  # an argument that has no hash
            return None
        with initial_state(), torch.no_grad():
            zeros = [_zeros(a, d) for a, d in zip(args, dims, strict=True)]
            options = zeros.pop() if kwargs else {}
            out = op(*zeros, **options)
        if len(known) >= ENTRIES:
            known.clear()
        dtype = known[key] = out.dtype if isinstance(out, Tensor) else None
        return dtype

    return ask


ENTRIES = 4096  # signatures that are remembered for one rule


def _signature(a: Any, dims: Any) -> Any:
    if isinstance(a, Tensor):
        return (a.shape, dims, a.dtype, a.device)
    kind = type(a)
    if kind is dict:
        return tuple([(k, _signature(v, dims.get(k) if dims else None)) for k, v in a.items()])
    if kind is list or kind is tuple:
        return tuple([_signature(v, d) for v, d in zip(a, dims or (None,) * len(a), strict=True)])
    return (kind, a)


def _zeros(a: Any, dims: Any) -> Any:
    """Return an argument with zeros for every tensor, as many as one sample has."""
    if isinstance(a, Tensor):
        return torch.zeros([n for d, n in enumerate(a.shape) if d != dims], dtype=a.dtype, device=a.device)
    if type(a) is dict:
        return {k: _zeros(v, dims.get(k) if dims else None) for k, v in a.items()}
    if type(a) in (list, tuple):
        return type(a)(_zeros(v, d) for v, d in zip(a, dims or (None,) * len(a), strict=True))
    return a
