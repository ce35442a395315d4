"""What the author of a rule pack needs; everything here is public API."""

from .dispatch.decompose import decompose
from .dispatch.inplace import unrepeated
from .dispatch.lowering import run_lowered
from .dispatch.planner import call_inherent
from .dispatch.rows import narrow, rows_level, rows_of, taken_off
from .errors import (
    ComplexGraphError,
    DataDependentError,
    FallbackError,
    InplaceError,
    OpaqueCodeError,
    UnsupportedError,
    VmapError,
    located,
    user_location,
)
from .levels.args import unwrap, wrap
from .levels.containers import leaves, map_leaves
from .levels.entry import dispatch
from .levels.exchange import exchange, exchanged
from .levels.graph_node import Dims, GraphNode, physical_with_dims, shows_samples
from .levels.layout import below_levels, mapped, same_storage, sample_layout, settled, storage_of
from .levels.level import Level, call
from .levels.level import Level as BatchInfo
from .levels.ownership import (
    fresh,
    leaf_level,
    make_leaf,
    own_samples,
    promote,
    requires_grad_,
    shared,
    was_made_inside,
)
from .levels.pieces import Piece, gradients, pieces_of, remember
from .levels.read import every_sample
from .levels.recording import current as current_recorder
from .levels.sharing import is_refused, refuse_writes, values_around
from .levels.stack import below, current_levels, resumed
from .levels.tensor import BatchedTensor, become, make_batched
from .patching.registry import Patch, patch
from .rulekit.asking import asker
from .rulekit.by_shape import by_shape
from .rulekit.checked import run_rule
from .rulekit.dims import (
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
from .rulekit.discovery import hookimpl
from .rulekit.families import along_dim, pointwise, reduction
from .rulekit.loop import loop, loop_rule, report
from .rulekit.makers import batch_dims, broadcast_all, expand_dims, sequential
from .rulekit.packs import register, unregister
from .rulekit.rule import Rule, RulePack, may_return_self
from .rulekit.shared_weight import Product, is_expanded, product
from .torch_compat.autocast import without_autocast_cache
from .torch_compat.bindings import emitter
from .torch_compat.mode_stack import without_modes
from .torch_compat.one_graph import Transform, applied, in_bodies, made_by, show_as
from .torch_compat.operators import aten, find, named_aten
from .transform.chunking import Parts
from .transform.control_flow import offer_control_flow
from .transform.custom_vmap import sequential_vmap
from .transform.lowered_map import lowered_map
from .transform.swapping import as_now, known_as_swapped, places_of, swapped

__all__ = [
    "BatchInfo",
    "BatchedTensor",
    "ComplexGraphError",
    "DataDependentError",
    "Dims",
    "FallbackError",
    "GraphNode",
    "InplaceError",
    "Level",
    "OpaqueCodeError",
    "Parts",
    "Patch",
    "Piece",
    "Product",
    "Rule",
    "RulePack",
    "Transform",
    "UnsupportedError",
    "VmapError",
    "align",
    "along_dim",
    "applied",
    "as_now",
    "asker",
    "aten",
    "batch_dims",
    "become",
    "below",
    "below_levels",
    "broadcast_all",
    "by_shape",
    "call",
    "call_inherent",
    "current_levels",
    "current_recorder",
    "decompose",
    "dispatch",
    "emitter",
    "ensure_bdim",
    "every_sample",
    "exchange",
    "exchanged",
    "expand_dims",
    "find",
    "fresh",
    "gradients",
    "hookimpl",
    "in_bodies",
    "is_expanded",
    "is_refused",
    "known_as_swapped",
    "leaf_level",
    "leaves",
    "located",
    "logical_rank",
    "loop",
    "loop_rule",
    "lowered_map",
    "made_by",
    "make_batched",
    "make_leaf",
    "map_leaves",
    "mapped",
    "may_return_self",
    "named_aten",
    "narrow",
    "offer_control_flow",
    "own_samples",
    "pad_rank",
    "patch",
    "physical_dim",
    "physical_dims",
    "physical_with_dims",
    "pieces_of",
    "places_of",
    "pointwise",
    "product",
    "promote",
    "promote_like_samples",
    "reduction",
    "refuse_writes",
    "register",
    "remember",
    "report",
    "requires_grad_",
    "resumed",
    "rows_level",
    "rows_of",
    "run_lowered",
    "run_rule",
    "same_storage",
    "sample_layout",
    "sequential",
    "sequential_vmap",
    "settled",
    "shared",
    "show_as",
    "shows_samples",
    "storage_of",
    "swapped",
    "taken_off",
    "to_front",
    "unregister",
    "unrepeated",
    "unwrap",
    "user_location",
    "values_around",
    "was_made_inside",
    "without_autocast_cache",
    "without_modes",
    "wrap",
    "wrap_dim",
]
