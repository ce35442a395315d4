"""vmap-cuda: GPUs under vmap. A rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl

from . import (
    attention,
    convolution,
    dropout,
    gemm,
    grid,
    normalization,
    optimizers,
    recurrent,
    streams,
    triton_kernels,
)
from .graphs import graph, graph_backend
from .triton_kernels import triton_rule

__all__ = ["graph", "graph_backend", "triton_rule", "vmap_rules"]

MODULES = (
    attention,
    convolution,
    dropout,
    gemm,
    grid,
    normalization,
    optimizers,
    recurrent,
    streams,
    triton_kernels,
)


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    return [module.pack for module in MODULES]
