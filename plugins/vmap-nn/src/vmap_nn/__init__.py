"""vmap-nn: layers and losses under vmap. A rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl

from . import (
    attention,
    classification,
    convolution,
    ctc,
    embedding,
    embedding_bag,
    flex,
    functional,
    loss,
    multihead,
    normalization,
    normalization_backward,
    recurrent,
    spatial,
)
from .buffers import call_with_buffers
from .ensemble import Ensemble

__all__ = ["Ensemble", "call_with_buffers", "vmap_rules"]

MODULES = (
    attention,
    classification,
    convolution,
    ctc,
    embedding,
    embedding_bag,
    flex,
    functional,
    loss,
    multihead,
    normalization,
    normalization_backward,
    recurrent,
    spatial,
)


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    multihead.no_hint_for_mapped_masks.install()
    return [module.pack for module in MODULES]
