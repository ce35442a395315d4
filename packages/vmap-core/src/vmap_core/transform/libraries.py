"""Libraries that ask for a tensor's class, where ``isinstance(x, torch.Tensor)`` would do, get to know BatchedTensor.

``type(x)`` of a BatchedTensor is no subclass of Tensor and cannot be one. Each is told once, when it has been imported.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from ..levels import containers
from ..levels.tensor import BatchedTensor
from ..torch_compat.imports import when_imported


def _tensordict_base(module: Any) -> None:
    """A TensorDict makes a tensor of any value whose class is none, and asks classes which entries are leaves."""
    native = module.TensorDictBase._convert_to_tensor

    @functools.wraps(native)
    def convert(self: Any, value: Any) -> Any:
        return value if type(value) is BatchedTensor else native(self, value)

    module.TensorDictBase._convert_to_tensor = convert
    leaf = module._is_leaf_nontensor  # known by identity all over tensordict: it stays the object that it is
    module._vmap_tensors = {BatchedTensor}
    module._vmap_is_leaf = types.FunctionType(leaf.__code__, leaf.__globals__, leaf.__name__)
    leaf.__code__ = (lambda cls: cls in _vmap_tensors or _vmap_is_leaf(cls)).__code__  # type: ignore[name-defined]  # noqa: F821


def _tensordict_params(module: Any) -> None:
    """A module that holds a TensorDict of parameters is, inside, the TensorDict of a sample's."""
    containers.CONTAINERS[module.TensorDictParams] = (lambda params: ([params._param_td], None), lambda tds, _: tds[0])


def introduce() -> None:
    """Tell those libraries as soon as they are imported."""
    when_imported("tensordict.base", _tensordict_base)
    when_imported("tensordict.nn.params", _tensordict_params)
