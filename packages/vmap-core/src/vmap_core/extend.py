"""What the author of a rule pack needs; everything here is public API."""

from ._autocast import without_autocast_cache
from ._by_shape import by_shape
from ._dims import (
    align,
    ensure_bdim,
    logical_rank,
    pad_rank,
    physical_dim,
    physical_dims,
    promote_like_samples,
    to_front,
    wrap_dim,
)
from ._dispatch import call, call_inherent, emitter
from ._errors import ComplexGraphError, DataDependentError, InplaceError, UnsupportedError, user_location
from ._exchange import exchange, exchanged
from ._fallback import loop, loop_rule
from ._families import along_dim, pointwise, reduction
from ._inplace import unrepeated
from ._level import Level, current_levels, resumed
from ._level import Level as BatchInfo
from ._lower import run_lowered
from ._lowered_map import lowered_map
from ._makers import batch_dims, broadcast_all, decompose, expand_dims, sequential
from ._ownership import leaf_level, make_leaf, own_samples, promote, requires_grad_
from ._packs import hookimpl, register, unregister
from ._plans import unwrap, wrap
from ._read import every_sample
from ._registry import RulePack
from ._tensor import BatchedTensor, make_batched
from ._unexpanded import Product, is_expanded, product
from .torch_compat.operators import aten, find

__all__ = [
    "BatchInfo",
    "BatchedTensor",
    "ComplexGraphError",
    "DataDependentError",
    "InplaceError",
    "Level",
    "Product",
    "RulePack",
    "UnsupportedError",
    "align",
    "along_dim",
    "aten",
    "batch_dims",
    "broadcast_all",
    "by_shape",
    "call",
    "call_inherent",
    "current_levels",
    "decompose",
    "emitter",
    "ensure_bdim",
    "every_sample",
    "exchange",
    "exchanged",
    "expand_dims",
    "find",
    "hookimpl",
    "is_expanded",
    "leaf_level",
    "logical_rank",
    "loop",
    "loop_rule",
    "lowered_map",
    "make_batched",
    "make_leaf",
    "own_samples",
    "pad_rank",
    "physical_dim",
    "physical_dims",
    "pointwise",
    "product",
    "promote",
    "promote_like_samples",
    "reduction",
    "register",
    "requires_grad_",
    "resumed",
    "run_lowered",
    "sequential",
    "to_front",
    "unregister",
    "unrepeated",
    "unwrap",
    "user_location",
    "without_autocast_cache",
    "wrap",
    "wrap_dim",
]
