"""vmap-control-flow: control flow on values that differ from sample to sample. A rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl, offer_control_flow

from . import operators
from .python import split

__all__ = ["split", "vmap_rules"]


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack, and offer what ``vmap(f, control_flow="split")`` runs."""
    offer_control_flow(split)
    return [operators.pack]
