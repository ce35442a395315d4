"""vmap-linalg: linear algebra under vmap. A rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl

from . import composite, lobpcg, matrices, special

__all__ = ["vmap_rules"]


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    return [matrices.pack, composite.pack, special.pack, lobpcg.pack]
