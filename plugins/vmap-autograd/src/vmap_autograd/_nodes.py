"""The kinds of nodes that take a vector with a batch dim in front: as they are, or by a formula here.

A formula gets the node, the vector and which results are needed, and returns what the node would for each vector: a
tensor, or one for each edge. What depends on more than the node tells is NotImplemented.

Which kinds these are, with which versions of PyTorch, has been measured: it is in `_measured_nodes`, which
``python -m tests.compatibility.nodes`` writes. With any other version no kind is, so nothing rests on a formula of a node
that PyTorch has changed since.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vmap_core import vmap
from vmap_core.extend import aten

from . import _layer_nodes
from ._layer_nodes import Formula, dim_of, signed
from ._measured_nodes import NODES


def formula_of(node: Any) -> Formula | None:
    """Return how to run a node on a batch of vectors; None if it has to run on lowered ones."""
    kind = type(node)
    if kind not in _known:
        _known[kind] = _mapped if is_linear(node) else _formula_of(kind.__name__)
    return _known[kind]


def is_linear(node: Any) -> bool:
    """Tell whether a node is that of one of the core's Functions, whose backward is linear in the gradient."""
    return getattr(getattr(node, "_forward_cls", None), "backward_is_linear", False)


def _mapped(node: Any, g: Any, needed: Any) -> Any:
    """Map the backward of a Function, of which the node is the ctx; it has results for what is no tensor, too."""
    results = vmap(functools.partial(node._forward_cls.backward, node))(g)
    found = iter([r for r, need in zip(results, node.needs_input_grad, strict=True) if need])
    return tuple(None if following is None else next(found) for following, _ in node.next_functions)


def _formula_of(name: str) -> Formula | None:
    version = ".".join(torch.__version__.split(".")[:2])
    return FORMULAS.get(name, as_it_is) if version in NODES.get(name, "").split() else None


_known: dict[type, Formula | None] = {}


def as_it_is(node: Any, g: Any, needed: Any) -> Any:
    """Return what the node returns."""
    return node(g)


def _of_shape(node: Any, g: Any, needed: Any) -> Any:
    return g.reshape(g.shape[0], *node._saved_self_sym_sizes)


def _as_given(node: Any, g: Any, needed: Any) -> Any:
    """Leave it to the sum over the dims that the tensor does not have."""
    return g


def _t(node: Any, g: Any, needed: Any) -> Any:
    return g.transpose(1, 2) if g.ndim > 2 else g


def _transpose(node: Any, g: Any, needed: Any) -> Any:
    return g.transpose(dim_of(g, node._saved_dim0), dim_of(g, node._saved_dim1)) if g.ndim > 1 else g


def _permute(node: Any, g: Any, needed: Any) -> Any:
    dims = [dim_of(g, d) for d in node._saved_dims]
    return g.permute(0, *(dims.index(d) + 1 for d in range(1, g.ndim)))


def _unsqueeze(node: Any, g: Any, needed: Any) -> Any:
    return g.squeeze(dim_of(g, node._saved_dim))


def _select(node: Any, g: Any, needed: Any) -> Any:
    sizes = (g.shape[0], *node._saved_self_sym_sizes)
    dim, index = signed(node._saved_dim), signed(node._saved_index)
    return aten.select_backward.default(g, sizes, dim + 1 if dim >= 0 else dim, index)


def _slice(node: Any, g: Any, needed: Any) -> Any:
    start, end = node._saved_start, node._saved_end
    start, end = 0 if start is None else signed(start), 2**63 - 1 if end is None else signed(end)
    sizes = (g.shape[0], *node._saved_self_sym_sizes)
    return aten.slice_backward.default(g, sizes, dim_of(g, node._saved_dim), start, end, node._saved_step)


def _cat(node: Any, g: Any, needed: Any) -> Any:
    dim = dim_of(g, node._saved_dim)
    sizes = [next_node and next_node._input_metadata[k].shape for next_node, k in node.next_functions]
    if any(size is None or len(size) != g.ndim - 1 for size in sizes):  # one without a graph; one of shape (0,)
        return NotImplemented
    return g.split([size[dim - 1] for size in sizes], dim)


def _stack(node: Any, g: Any, needed: Any) -> Any:
    return g.unbind(dim_of(g, node._saved_dim))


def _sum(node: Any, g: Any, needed: Any) -> Any:
    return _spread(g, node._saved_self_sym_sizes, (), False)


def _sum_dims(node: Any, g: Any, needed: Any) -> Any:
    return _spread(g, node._saved_self_sym_sizes, node._saved_dim, node._saved_keepdim)


def _mean(node: Any, g: Any, needed: Any) -> Any:
    return _sum(node, g, needed) / node._saved_self_sym_numel


def _mean_dims(node: Any, g: Any, needed: Any) -> Any:
    out = _sum_dims(node, g, needed)
    return out / math.prod(n for d, n in enumerate(out.shape[1:]) if d in _reduced(node._saved_dim, out.ndim - 1))


def _spread(g: Any, sizes: Sequence[int], dims: Any, keepdim: bool) -> Any:
    """Expand along the dims that a sum was over."""
    if not keepdim:
        for d in sorted(_reduced(dims, len(sizes))):
            g = g.unsqueeze(d + 1)
    return g.expand(g.shape[0], *sizes)


def _reduced(dims: Sequence[int] | None, ndim: int) -> set[int]:
    return {signed(d) % ndim for d in dims} if dims and ndim else set(range(ndim))


def _product(first: str, second: str, gradients: Callable[..., tuple[Any, Any]]) -> Formula:
    """Make the formula of a product, of the saved factors of these names."""

    def formula(node: Any, g: Any, needed: Any) -> Any:
        return gradients(getattr(node, first), getattr(node, second), g, needed)

    return formula


def _scaled_sum(first: str, second: str, gradients: Callable[..., tuple[Any, Any]]) -> Formula:
    """Make the formula of ``beta * x + alpha * product``."""

    def formula(node: Any, g: Any, needed: Any) -> Any:
        alpha, beta = node._saved_alpha, node._saved_beta
        scaled = g if alpha == 1 else g * alpha
        return (
            g if beta == 1 or not needed[0] else g * beta,
            *gradients(getattr(node, first), getattr(node, second), scaled, needed[1:]),
        )

    return formula


def _products(a: Any, b: Any, g: Any, needed: Any) -> tuple[Any, Any]:
    """Return the gradients of the factors of ``a @ b``, matrices that all vectors share; g is ``(n, rows, columns)``."""
    return torch.matmul(g, b.t()) if needed[0] else None, torch.matmul(a.t(), g) if needed[1] else None


def _batched_products(a: Any, b: Any, g: Any, needed: Any) -> tuple[Any, Any]:
    """The same with a batch of matrices; the vectors are further rows, or columns, so that no matrix is repeated."""
    n, count, rows, columns = g.shape
    first = second = None
    if needed[0]:
        folded = g.transpose(0, 1).reshape(count, n * rows, columns)
        first = torch.bmm(folded, b.mT).view(count, n, rows, b.shape[1]).transpose(0, 1)
    if needed[1]:
        folded = g.permute(1, 2, 0, 3).reshape(count, rows, n * columns)
        second = torch.bmm(a.mT, folded).view(count, a.shape[2], n, columns).permute(2, 0, 1, 3)
    return first, second


def _matrix_vector(a: Any, v: Any, g: Any, needed: Any) -> tuple[Any, Any]:
    return g.unsqueeze(2) * v if needed[0] else None, torch.mm(g, a) if needed[1] else None


def _dot(a: Any, b: Any, g: Any, needed: Any) -> tuple[Any, Any]:
    g = g.unsqueeze(1)
    return g * b if needed[0] else None, g * a if needed[1] else None


FORMULAS: dict[str, Formula] = {
    **_layer_nodes.FORMULAS,
    "AddmmBackward0": _scaled_sum("_saved_mat1", "_saved_mat2", _products),
    "AddmvBackward0": _scaled_sum("_saved_mat", "_saved_vec", _matrix_vector),
    "BaddbmmBackward0": _scaled_sum("_saved_batch1", "_saved_batch2", _batched_products),
    "BmmBackward0": _product("_saved_self", "_saved_mat2", _batched_products),
    "CatBackward0": _cat,
    "DotBackward0": _product("_saved_self", "_saved_tensor", _dot),
    "ExpandBackward0": _as_given,
    "MeanBackward0": _mean,
    "MeanBackward1": _mean_dims,
    "MmBackward0": _product("_saved_self", "_saved_mat2", _products),
    "MvBackward0": _product("_saved_self", "_saved_vec", _matrix_vector),
    "PermuteBackward0": _permute,
    "ReshapeAliasBackward0": _of_shape,
    "SelectBackward0": _select,
    "SliceBackward0": _slice,
    "SqueezeBackward0": _of_shape,
    "SqueezeBackward1": _of_shape,
    "SqueezeBackward2": _of_shape,
    "SqueezeBackward4": _of_shape,
    "StackBackward0": _stack,
    "SumBackward0": _sum,
    "SumBackward1": _sum_dims,
    "TBackward0": _t,
    "TransposeBackward0": _transpose,
    "UnsafeViewBackward0": _of_shape,
    "UnsqueezeBackward0": _unsqueeze,
    "UnsqueezeBackward1": _unsqueeze,
    "ViewBackward0": _of_shape,
}
