"""vmap for PyTorch in Python: write a function for one sample, get the function for a batch."""

from . import _dispatch as _dispatch  # first: the modules below it import each other through it
from . import _methods as _methods
from ._capture import capture
from ._check import CheckReport, check
from ._compile import compile
from ._custom_vmap import custom_vmap, sequential_vmap
from ._errors import (
    CaptureError,
    CaptureWarning,
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
from ._explain import Report, explain
from ._fallback import fallback_policy, set_fallback_policy
from ._interop import install as _install_guards
from ._packs import packs, use_packs
from ._program import Program
from ._transform import vmap

__all__ = [
    "CaptureError",
    "CaptureWarning",
    "CheckReport",
    "DataDependentError",
    "EscapedTensorError",
    "FallbackError",
    "FallbackWarning",
    "InplaceError",
    "PackConflictError",
    "Program",
    "RandomnessError",
    "Report",
    "UnsupportedError",
    "VmapError",
    "capture",
    "check",
    "compile",
    "custom_vmap",
    "explain",
    "fallback_policy",
    "packs",
    "sequential_vmap",
    "set_fallback_policy",
    "use_packs",
    "vmap",
]

_install_guards()
