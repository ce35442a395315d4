"""vmap-autograd: gradients inside mapped functions. A rule pack for vmap-core."""

from vmap_core.extend import RulePack, hookimpl

from . import accumulate, backward, checkpoint, edges, forward_mode, function, functional, torch_func
from . import grad as grad_rule
from . import one_graph as one_graph
from .jacobians import hessian, jacfwd, jacrev
from .per_sample import per_sample_grads
from .transforms import grad, grad_and_value, jvp, linearize, vjp

__all__ = [
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "per_sample_grads",
    "vjp",
    "vmap_rules",
]


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Return the rules of this pack."""
    for patch in (
        checkpoint.recompute_at_levels,
        checkpoint.tell_the_level,
        edges.find_node,
        functional.choose_vmap,
        *torch_func.PATCHES,
    ):
        patch.install()
    return [grad_rule.pack, accumulate.pack, function.pack, forward_mode.pack, *backward.packs]
