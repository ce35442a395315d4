"""What PyTorch keeps of a tensor beside its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import TensorBase as TensorBase
from torch._C import _set_grad_enabled as set_grad_enabled
from torch._C import _storage_Use_Count as storage_use_count

typed_storage: Any = Tensor._typed_storage
make_dual: Any = torch._VF._make_dual
unpack_dual: Any = torch._VF._unpack_dual
make_wrapper: Any = Tensor._make_wrapper_subclass
is_alias_of: Any = torch._C.__dict__["_is_alias_of"]

__all__ = [
    "TensorBase",
    "dual_level",
    "fake_tensors",
    "is_alias_of",
    "make_dual",
    "make_wrapper",
    "set_grad_enabled",
    "storage_use_count",
    "tensor_check",
    "typed_storage",
    "unpack_dual",
]


def tensor_check(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Return a function that may say True for tensors with the same traits, in a fraction of the time.

    torch.compile's own check, in C++; it says False also for a tensor given twice, and for one of another class.
    """
    try:
        from torch._C._dynamo.guards import TensorGuards

        shapes: Any = [list(x.shape) for x in tensors]
        strides: Any = [list(x.stride()) for x in tensors]
        guards = TensorGuards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides)
        check: Callable[..., bool] = guards.check
        return check
    except (ImportError, TypeError):
        return lambda *_: False


def fake_tensors() -> Any:
    """Return a context in which operations compute shapes, and no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # part of the compiler: nobody else needs it

    return FakeTensorMode(allow_non_fake_inputs=True)


def dual_level() -> int:
    """Return the innermost level of forward mode in this process; -1 where there is none."""
    level: int = torch.autograd.forward_ad._current_level
    return level
