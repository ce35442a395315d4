"""vmap for PyTorch in Python: write a function for one sample, get the function for a batch."""

from . import _dispatch as _dispatch  # first: the modules below it import each other through it
from ._errors import (
    DataDependentError,
    EscapedTensorError,
    FallbackError,
    FallbackWarning,
    InplaceError,
    PackConflictError,
    RandomnessError,
    UnsupportedError,
    VmapError,
)
from ._fallback import fallback_policy, set_fallback_policy
from ._interop import install as _install_guards
from ._packs import packs, use_packs
from ._transform import vmap

__all__ = [
    "DataDependentError",
    "EscapedTensorError",
    "FallbackError",
    "FallbackWarning",
    "InplaceError",
    "PackConflictError",
    "RandomnessError",
    "UnsupportedError",
    "VmapError",
    "fallback_policy",
    "packs",
    "set_fallback_policy",
    "use_packs",
    "vmap",
]

_install_guards()
