"""vmap for PyTorch in Python: write a function for one sample, get the function for a batch."""

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
    RandomnessWarning,
    RuleError,
    UnsupportedError,
    VmapError,
)
from .observe.check import CheckReport, check
from .observe.explain import Report, explain
from .patching import Patch, patches
from .patching import install_all as _install_all
from .programs.capture import capture
from .programs.compile import compile
from .programs.program import Program
from .rulekit.loop import fallback_policy, set_fallback_policy
from .rulekit.packs import packs, use_packs
from .transform.custom_vmap import custom_vmap, sequential_vmap
from .transform.libraries import introduce as _introduce
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
    "Patch",
    "Program",
    "RandomnessError",
    "RandomnessWarning",
    "Report",
    "RuleError",
    "UnsupportedError",
    "VmapError",
    "capture",
    "check",
    "compile",
    "custom_vmap",
    "explain",
    "fallback_policy",
    "packs",
    "patches",
    "sequential_vmap",
    "set_fallback_policy",
    "use_packs",
    "vmap",
]

_install_all()
_introduce()
