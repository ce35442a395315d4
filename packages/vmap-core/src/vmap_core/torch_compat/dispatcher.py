"""PyTorch's dispatcher: its state in this thread."""

from __future__ import annotations

from torch._C import _AutoDispatchBelowAutograd as BelowAutograd
from torch._C import _dispatch_tls_local_exclude_set as excluded_keys
from torch._C import _dispatch_tls_local_include_set as included_keys
from torch._C import _ExcludeDispatchKeyGuard as WithoutDispatchKeys
from torch._C import _ForceDispatchKeyGuard as WithDispatchKeys
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "BelowAutograd",
    "TorchDispatchMode",
    "WithDispatchKeys",
    "WithoutDispatchKeys",
    "excluded_keys",
    "included_keys",
]
