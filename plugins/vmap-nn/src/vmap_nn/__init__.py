"""vmap-nn: layers and losses under vmap. A rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl

from . import attention, classification, convolution, embedding, loss, normalization, recurrent, spatial

__all__ = ["vmap_rules"]


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    modules = (attention, classification, convolution, embedding, loss, normalization, recurrent, spatial)
    return [module.pack for module in modules]
