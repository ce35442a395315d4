"""vmap-autograd: gradients inside mapped functions. A rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl

from . import accumulate, checkpoint, forward_mode, function, grad

__all__ = ["vmap_rules"]


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    checkpoint.install()
    return [grad.pack, accumulate.pack, function.pack, forward_mode.pack]
