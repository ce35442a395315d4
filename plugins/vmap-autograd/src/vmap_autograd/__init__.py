"""vmap-autograd: gradients inside mapped functions. A rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl

from . import grad

__all__ = ["vmap_rules"]


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    return [grad.pack]
