"""vmap-linalg: a rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl

__all__ = ["vmap_rules"]

pack = RulePack("linalg")


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    return [pack]
