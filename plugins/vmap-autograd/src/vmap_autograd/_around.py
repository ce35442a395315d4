"""Tensors that a differentiated function has from around it: of inference mode, or written to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from vmap_core.extend import BatchedTensor, UnsupportedError, leaves, map_leaves, user_location, values_around

from ._state import usable


@contextlib.contextmanager
def watching_around(func: Callable[..., Any], args: Any, name: str) -> Iterator[None]:
    """Run a function that autograd records, and look at the tensors that it has from around it.

    Autograd saves none that was made in inference mode, so the function finds copies of those. And one that is written to
    would keep the graph.

    Args:
        func: the function.
        args: its arguments.
        name: the transform, for the error.

    Raises:
        UnsupportedError: it has written what depends on its inputs to a tensor from around it.
    """
    around = [v for v in values_around(func) if isinstance(v, Tensor) and type(v) is not BatchedTensor]
    given = (v for v in leaves(args) if isinstance(v, Tensor))
    constant = [v for v in around if not v.requires_grad]
    with _Copies() if any(v.is_inference() for v in (*around, *given)) else contextlib.nullcontext():
        yield
    for v in constant:
        if v.requires_grad and not v.is_leaf:
            raise UnsupportedError(
                f"vmap: {name} at {user_location()}: the function has written to a captured tensor of shape "
                f"{tuple(v.shape)}, which holds a part of its graph now. Instead: pass that tensor as an argument, or write "
                f"what is detached."
            )


class _Copies(TorchFunctionMode):
    """Hands copies of tensors that were made in inference mode to functions of PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if "out" not in kwargs and (not name.endswith("_") or name.endswith("__")):  # a write to a copy would be lost
            args, kwargs = map_leaves(_copied, args), map_leaves(_copied, kwargs)
        return func(*args, **kwargs)


def _copied(x: Any) -> Any:
    return usable(x) if isinstance(x, Tensor) else x
