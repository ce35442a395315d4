"""Tensors that a differentiated function has from around it: of inference mode, or written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from vmap_core.extend import (
    BatchedTensor,
    UnsupportedError,
    leaves,
    map_leaves,
    user_location,
    values_around,
    without_modes,
)

from ._state import physical, usable


class Around:
    """What a function that autograd records has from around it.

    Autograd saves no tensor that was made in inference mode, so where there is one the function is to find copies of such. And a
    tensor that is written to would keep the graph.

    Attributes:
        copies: a mode to run the function in, which hands it those copies; None where there are none.
    """

    __slots__ = ("_constant", "_name", "copies")

    def __init__(self, func: Callable[..., Any], args: Any, name: str) -> None:
        """Look at a function before it runs: at what it has, and what it is given.

        Args:
            func: the function.
            args: its arguments.
            name: the transform, for the error.
        """
        around = [v for v in values_around(func) if isinstance(v, Tensor) and type(v) is not BatchedTensor]
        given = [physical(v) for v in leaves(args) if isinstance(v, Tensor)]
        with without_modes():  # a level would be asked what a tensor is
            made_in_inference = any([v.is_inference() for v in (*around, *given)])
            self._constant = [v for v in around if not v.requires_grad]
        self.copies = _Copies() if made_in_inference else None
        self._name = name

    def check(self) -> None:
        """Look again, when it has run.

        Raises:
            UnsupportedError: it has written what depends on its inputs to a tensor from around it.
        """
        for v in self._constant:
            if v.requires_grad and not v.is_leaf:
                raise UnsupportedError(
                    f"vmap: {self._name} at {user_location()}: the function has written to a captured tensor of shape "
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
