"""vmap-control-flow: control flow on values that differ from sample to sample. A rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl

from . import operators
from .python import split

__all__ = ["split", "vmap_rules"]


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    return [operators.pack]
