"""The core's own rules, a file per family of operators."""

from ..rulekit.discovery import hookimpl
from ..rulekit.rule import RulePack
from . import (
    cast,
    collectives,
    composite,
    dynamic,
    factory,
    fft,
    foreach,
    getitem,
    hooks,
    index,
    join,
    matmul,
    pointwise,
    properties,
    random,
    read,
    reduction,
    reshape,
    scatter,
    sorting,
    sparse,
    storage,
    tensor_methods,
    view,
)

MODULES = (
    cast,
    collectives,
    composite,
    dynamic,
    factory,
    fft,
    foreach,
    getitem,
    hooks,
    index,
    join,
    matmul,
    pointwise,
    properties,
    random,
    read,
    reduction,
    reshape,
    scatter,
    sorting,
    sparse,
    storage,
    tensor_methods,
    view,
)


@hookimpl
def vmap_rules() -> list[RulePack]:
    """Offer the core's rules."""
    return [module.pack for module in MODULES]
