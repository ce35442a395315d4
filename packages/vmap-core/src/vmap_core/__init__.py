"""vmap for PyTorch in Python: write a function for one sample, get the function for a batch."""

# first: the modules below it import each other through it

from .errors import (
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
from .observe.check import CheckReport, check
from .observe.explain import Report, explain
from .patches.guards import install as _install_guards
from .programs.capture import capture
from .programs.compile import compile
from .programs.program import Program
from .rulekit.loop import fallback_policy, set_fallback_policy
from .rulekit.packs import packs, use_packs
from .transform.custom_vmap import custom_vmap, sequential_vmap
from .transform.vmap import vmap

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
