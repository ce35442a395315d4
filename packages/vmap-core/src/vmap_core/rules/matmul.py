"""Products. Note [Unbatched operands are not expanded]: an operand that all samples share is folded into one large
product instead, so it is read once.
"""

from __future__ import annotations

from typing import Any

import torch

from ..levels.layout import samples_first
from ..rulekit.asking import asker
from ..rulekit.dims import ensure_bdim, physical_dim, promote_like_samples, to_front
from ..rulekit.leading import Leading
from ..rulekit.rule import Rule, RulePack
from ..rulekit.shared_weight import Product, is_expanded, product
from ..torch_compat.operators import named_aten as aten
from .sparse import product as sparse_product

pack = RulePack("core.matmul")


_ask_matmul, _ask_bmm, _ask_linear = asker(torch.matmul), asker(torch.bmm), asker(torch.nn.functional.linear)
_ask_vecdot = asker(aten.linalg_vecdot.default)


@pack.rule(aten.mm.default)
def mm(info, in_dims, a, b):
    """(n, k), (k, m) -> (n, m)."""
    a_bdim, b_bdim = in_dims
    _check_ranks("mat1", a, a_bdim, 2)
    _check_ranks("mat2", b, b_bdim, 2)
    return matmul(info, in_dims, a, b)


@pack.rule(aten.mv.default)
def mv(info, in_dims, a, x):
    """(n, k), (k) -> (n)."""
    _check_ranks("mat", a, in_dims[0], 2)
    _check_ranks("vec", x, in_dims[1], 1)
    return matmul(info, in_dims, a, x)


@pack.rule(aten.dot.default)
def dot(info, in_dims, x, y):
    """(k), (k) -> ()."""
    x_bdim, y_bdim = in_dims
    x_rank, y_rank = x.ndim - (x_bdim is not None), y.ndim - (y_bdim is not None)
    if x_rank != 1 or y_rank != 1:
        raise RuntimeError(f"1D tensors expected, but got {x_rank}D and {y_rank}D tensors")
    return _inner(info, in_dims, x, y) if x.dtype in _WITHOUT_VECDOT else _vecdot(info, in_dims, x, y)


@pack.rule(aten.inner.default)
def inner(info, in_dims, x, y):
    """(*, k), (*', k) -> (*, *')."""
    x_bdim, y_bdim = in_dims
    x_rank, y_rank = x.ndim - (x_bdim is not None), y.ndim - (y_bdim is not None)
    if x_rank != 1 or y_rank != 1 or x.dtype in _WITHOUT_VECDOT:
        return _inner(info, in_dims, x, y)
    return _vecdot(info, in_dims, x, y)


_WITHOUT_VECDOT = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def _vecdot(info: Any, in_dims: Any, x: Any, y: Any) -> Any:
    x_bdim, y_bdim = in_dims
    if x_bdim is not None and y_bdim is not None:
        x, y = to_front(x, x_bdim), to_front(y, y_bdim)
        if x.shape != y.shape:
            raise RuntimeError(f"inconsistent tensor size, expected tensor [{x.shape[1]}] and src [{y.shape[1]}] to have the same number of elements")  # fmt: skip
        return torch.linalg.vecdot(x.conj() if x.is_complex() else x, y), 0
    return matmul(info, in_dims, x, y)


def _inner(info: Any, in_dims: Any, x: Any, y: Any) -> Any:
    """(*, k), (*', k) -> (*, *'); a scalar multiplies."""
    x_bdim, y_bdim = in_dims
    x, y = ensure_bdim(x, x_bdim, info.batch_size), ensure_bdim(y, y_bdim, info.batch_size)
    if x.ndim == 1 or y.ndim == 1:
        x, y = promote_like_samples((x, y), (0, 0))
        wide, narrow = (y, x) if x.ndim == 1 else (x, y)
        return wide * narrow.reshape(-1, *(1,) * (wide.ndim - 1)), 0
    flat_x = x.reshape(x.shape[0], x.shape[1:-1].numel(), x.shape[-1])
    flat_y = y.reshape(y.shape[0], y.shape[1:-1].numel(), y.shape[-1])
    return flat_x.bmm(flat_y.mT).reshape(x.shape[0], *x.shape[1:-1], *y.shape[1:-1]), 0


@pack.rule(aten.vdot.default)
def vdot(info, in_dims, x, y):
    """(k), (k) -> (), the first conjugated."""
    return dot(info, in_dims, x.conj() if x.is_complex() else x, y)


@pack.rule(aten.bmm.default)
def bmm(info, in_dims, a, b):
    """(b, n, k), (b, k, m) -> (b, n, m): the batch dim is one more in front."""
    _check_ranks("batch1", a, in_dims[0], 3)
    _check_ranks("batch2", b, in_dims[1], 3)
    a_bdim, b_bdim = in_dims
    if a.size(1 if a_bdim == 0 else 0) != b.size(1 if b_bdim == 0 else 0):
        _ask_bmm(info, in_dims, (a, b), {})
    return matmul(info, in_dims, a, b)


def _check_ranks(name: str, x: Any, bdim: int | None, rank: int) -> None:
    if x.ndim - (bdim is not None) != rank:
        raise RuntimeError(f"{name} must be a {rank}D tensor, got {x.ndim - (bdim is not None)}D")


def matmul(info, in_dims, a, b):
    """(*, n, k), (*, k, m) -> (*, n, m), with vectors on either side, and leading dims that broadcast."""
    try:
        return _matmul(info, in_dims, a, b)
    except (RuntimeError, NotImplementedError):
        if a.is_sparse or b.is_sparse:  # asked only now, since it takes longer than to try
            return sparse_product(info, in_dims, a, b)
        raise


_ON_THE_LEFT = Leading(
    torch.nn.functional.linear, (1, 0), ((2, 2), (2, 2)), batched=1, keeps_rank=True
)  # a matrix, and vectors
_ON_THE_RIGHT = Leading(torch.matmul, (0, 1), ((2, 64), (1, 2)))
for _op in (aten.matmul.default, aten.linalg_matmul.default):
    pack.add(_op, Rule(matmul, leading=(_ON_THE_LEFT, _ON_THE_RIGHT)))


def _matmul(info: Any, in_dims: Any, a: Any, b: Any) -> Any:
    a_bdim, b_bdim = in_dims
    a_rank, b_rank = a.ndim - (a_bdim is not None), b.ndim - (b_bdim is not None)
    if not a_rank or not b_rank:
        raise RuntimeError(f"both arguments to matmul need to be at least 1D, but they are {a_rank}D and {b_rank}D")
    if b_bdim is None and (a_rank == 1 or b_rank <= 2):
        a = to_front(a, a_bdim)
        if a_rank == 1 and b_rank > 2:
            return torch.matmul(a, b), b_rank - 2  # (B k) (* k m) -> (* B m)
        return torch.matmul(a, b), 0  # (B * k) (k m): torch folds the leading dims itself
    if a_bdim is None and a_rank <= 2 and b_rank == 1:
        b = to_front(b, b_bdim)
        return (torch.nn.functional.linear(b, a) if a_rank == 2 else torch.matmul(b, a)), 0  # (B k) (n k)
    if a_bdim is None and a_rank == 2 and b_rank == 2:
        b = b.movedim(b_bdim, 1)  # (n k) (k B m) -> (n B m)
        wide = a.mm(b.reshape(b.shape[0], b.shape[1:].numel()))
        return aten._unsafe_view.default(
            wide, [a.shape[0], *b.shape[1:]]
        ), 1  # no view to autograd: its samples may be laid out
    if a_rank == 1 and b_rank == 1:
        a, b = ensure_bdim(a, a_bdim, info.batch_size), ensure_bdim(b, b_bdim, info.batch_size)
        return torch.matmul(a.unsqueeze(1), b.unsqueeze(2))[:, 0, 0], 0
    if b_rank == 2 and is_expanded(b, b_bdim):
        return _linear(info, a, a_bdim, to_front(b, b_bdim).mT, None), 0
    if a_rank == 2 and b_rank <= 2 and is_expanded(a, a_bdim):
        b = ensure_bdim(b, b_bdim, info.batch_size)
        out = product(LINEAR, b if b_rank == 1 else b.mT, to_front(a, a_bdim), None)
        return (out if b_rank == 1 else out.mT), 0
    if a.dtype != b.dtype:  # without elements a product in batches takes them
        _ask_matmul(info, in_dims, (a, b), {})
    rank = max(a_rank, b_rank, 2)
    a, b = _as_matrices(a, a_bdim, rank, -2), _as_matrices(b, b_bdim, rank, -1)
    out = torch.matmul(a, b)
    if a_rank == 1:
        out = out.squeeze(-2)
    if b_rank == 1:
        out = out.squeeze(-1)
    return out, 0


def _as_matrices(x: Any, bdim: int | None, rank: int, vector_dim: int) -> Any:
    """Return an operand with its batch dim first and ``rank`` more dims; an unbatched one with just its own."""
    if x.ndim - (bdim is not None) == 1:
        x = to_front(x, bdim).unsqueeze(vector_dim)
        bdim = None if bdim is None else 0
    if bdim is None:
        return x
    x = to_front(x, bdim)
    return x.reshape(x.shape[0], *(1,) * (rank + 1 - x.ndim), *x.shape[1:])


def _expanded_linear(x: Any, weight: Any, bias: Any) -> Any:
    """(B * k), (B m k), (B m) -> (B * m)."""
    rows = x.reshape(x.shape[0], x.shape[1:-1].numel(), x.shape[-1])
    out = rows.bmm(weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return out.reshape(*x.shape[:-1], weight.shape[1])


def _linear_backward(grad: Any, x: Any, weight: Any, needs: Any) -> tuple[Any, Any, Any]:
    """(B * m), (B * k), (m k) -> (B * k), (B m k), (B m)."""
    rows, cols = grad.flatten(1, -2) if x.ndim > 2 else grad, x.flatten(1, -2) if x.ndim > 2 else x
    grad_weight = grad_bias = None
    if needs[1]:
        grad_weight = rows.mT.bmm(cols.conj()) if x.ndim > 2 else rows.unsqueeze(2) * cols.conj().unsqueeze(1)
    if needs[2]:
        grad_bias = rows.sum(1) if x.ndim > 2 else rows
    return (grad.matmul(weight.conj()) if needs[0] else None), grad_weight, grad_bias


LINEAR = Product(torch.nn.functional.linear, _linear_backward, _expanded_linear)


def _linear(info: Any, x: Any, x_bdim: int | None, weight: Any, bias: Any) -> Any:
    return product(LINEAR, ensure_bdim(x, x_bdim, info.batch_size), weight, bias)


def linear(info, in_dims, x, weight, bias=None):
    """(*, k), (m, k), (m) -> (*, m)."""
    x_bdim, w_bdim, b_bdim = (*in_dims, None)[:3]
    if w_bdim is None and b_bdim is None:
        if x_bdim == x.ndim - 1:
            x, x_bdim = to_front(x, x_bdim), 0
        if x_bdim and bias is not None and (weight.ndim, bias.ndim) == (2, 1) and x.shape[-1] == weight.shape[1]:
            # as linear does it, but linear gives a view, which cannot be laid out anew where a sample's is viewed
            rows = torch.addmm(bias, x.reshape(x.shape[:-1].numel(), x.shape[-1]), weight.t())
            return aten._unsafe_view.default(rows, [*x.shape[:-1], weight.shape[0]]), x_bdim
        return torch.nn.functional.linear(x, weight, bias), x_bdim
    w_rank = weight.ndim - (w_bdim is not None)
    if weight.dtype != x.dtype or w_rank != 2 or not _fits(bias, b_bdim, weight, w_bdim):
        _ask_linear(info, in_dims, (x, weight, bias), {})
    x_rank = x.ndim - (x_bdim is not None)
    if w_rank == 2 and is_expanded(weight, w_bdim):
        weight = to_front(weight, w_bdim)
        if bias is None or (is_expanded(bias, b_bdim) and bias.ndim == 2):
            return _linear(info, x, x_bdim, weight, None if bias is None else to_front(bias, b_bdim)), 0
    flipped = weight.mT if w_bdim is None else weight.transpose(
        *(physical_dim(d, w_rank, w_bdim) for d in (0, w_rank - 1))
    )  # fmt: skip
    if bias is None or w_bdim is None or w_rank != 2 or x_rank > 2:
        if x_bdim is None and w_bdim is None:
            out, bdim = torch.matmul(x, flipped), None
        else:
            out, bdim = matmul(info, (x_bdim, w_bdim), x, flipped)
        if bias is None:
            return out, bdim
        if bdim is not None and (b_bdim is None or (bdim, b_bdim, bias.ndim, out.ndim) == (1, 0, 2, 3)):
            return out + bias, bdim
        out = ensure_bdim(out, bdim, info.batch_size)
        if b_bdim is not None:
            bias = samples_first(bias, b_bdim)
            bias = bias.reshape(bias.shape[0], *(1,) * (out.ndim - bias.ndim), *bias.shape[1:])
        return out + bias, 0
    x, w = ensure_bdim(x, x_bdim, info.batch_size), to_front(flipped, w_bdim)
    rows = x if x_rank == 2 else x.unsqueeze(1)
    bias = ensure_bdim(bias, b_bdim, info.batch_size)
    if bias.ndim < 3:
        bias = bias.reshape(bias.shape[0], 1, bias.shape[1:].numel())
    out = torch.baddbmm(bias, rows, w)  # (B n k) (B k m)
    return (out if x_rank == 2 else out.squeeze(1)), 0


_linear_function = torch.nn.functional.linear
_WITH_WEIGHT = (
    Leading(_linear_function, (0, 1), ((2, 64), (2, 2)), keeps_rank=True),
    Leading(_linear_function, (0, 1, 2), ((2, 64), (2, 2), (1, 1)), keeps_rank=True),
)
pack.add(aten.linear.default, Rule(linear, leading=_WITH_WEIGHT))


def _fits(bias: Any, b_bdim: int | None, weight: Any, w_bdim: int | None) -> bool:
    """Tell whether a bias is there, and is a vector of the dtype and with as many elements as a weight (m, k) has rows."""
    if bias is None:
        return True
    if bias.ndim - (b_bdim is not None) != 1 or bias.dtype != weight.dtype:
        return False
    return bool(bias.size(0 if b_bdim else -1) == weight.size(0 if w_bdim else -2))


def _add_product(name: str, product: Any) -> None:
    """``beta * self + alpha * product``, as the add* operators say it."""

    def add_product(self: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        out = product(a, b)
        if out.dtype == torch.bool:  # a number would make integers of them
            alpha, beta = bool(alpha), bool(beta)
        elif not (out.is_floating_point() or out.is_complex()):  # and a fraction floating numbers
            alpha, beta = int(alpha), int(beta)
        out = out if alpha == 1 else out * alpha
        if beta == 0:  # PyTorch then ignores self, its NaNs too
            return out
        out = out + (self if beta == 1 else self * beta)
        return out

    add_product.__name__ = name
    pack.composite(getattr(aten, name).default)(add_product)


_add_product("addmm", torch.mm)
_add_product("addmv", torch.mv)
_add_product("baddbmm", torch.bmm)
_add_product("addbmm", lambda a, b: torch.bmm(a, b).sum(0))
_add_product("addr", lambda a, b: a[:, None] * b)


@pack.rule(aten.outer.default, aten.ger.default)
def outer(info, in_dims, x, y):
    """(n), (m) -> (n, m)."""
    for i, (v, d) in enumerate(zip((x, y), in_dims[:2], strict=True)):
        if v.ndim - (d is not None) != 1:
            raise RuntimeError(
                f"outer: Expected 1-D argument {('self', 'vec2')[i]}, but got {v.ndim - (d is not None)}-D"
            )
    x, y = (samples_first(v, d) if d else v for v, d in zip((x, y), in_dims[:2], strict=True))
    return x.unsqueeze(-1) * y.unsqueeze(-2), 0


@pack.rule(aten.linalg_vecdot.default)
def vecdot(info, in_dims, x, y, *, dim=-1):
    """(*, k), (*, k) -> (*); of scalars, their product."""
    rank = max(1, *(v.ndim - (d is not None) for v, d in zip((x, y), in_dims[:2], strict=True)))
    if rank == 1:  # two vectors do not broadcast
        _ask_vecdot(info, in_dims, (x, y), {"dim": dim})
    x, y = (_pad(v, d, rank) for v, d in zip((x, y), in_dims[:2], strict=True))
    return torch.linalg.vecdot(x, y, dim=physical_dim(dim, rank) - rank - 1), 0


@pack.rule(aten.linalg_cross.default)
def cross(info, in_dims, x, y, *, dim=-1):
    """(*, 3), (*, 3) -> (*, 3)."""
    rank = max(v.ndim - (d is not None) for v, d in zip((x, y), in_dims[:2], strict=True))
    x, y = (ensure_bdim(v, d, info.batch_size) for v, d in zip((x, y), in_dims[:2], strict=True))
    if x.ndim != y.ndim:
        raise RuntimeError("linalg.cross: inputs must have the same number of dimensions.")
    return torch.linalg.cross(x, y, dim=physical_dim(dim, rank)), 0


def _pad(x: Any, bdim: int | None, rank: int) -> Any:
    if bdim is None:
        return x
    x = to_front(x, bdim)
    return x.reshape(x.shape[0], *(1,) * (rank + 1 - x.ndim), *x.shape[1:])


@pack.rule(aten._cdist_forward.default)
def cdist(info, in_dims, x, y, p, compute_mode):
    """(*, n, d), (*, m, d) -> (*, n, m): distances of all pairs."""
    rank = max(v.ndim - (d is not None) for v, d in zip((x, y), in_dims[:2], strict=True))
    x, y = (_pad(ensure_bdim(v, d, info.batch_size), 0, rank) for v, d in zip((x, y), in_dims[:2], strict=True))
    mode = {0: "use_mm_for_euclid_dist_if_necessary", 1: "use_mm_for_euclid_dist",
            2: "donot_use_mm_for_euclid_dist", None: "use_mm_for_euclid_dist_if_necessary"}[compute_mode]  # fmt: skip
    return torch.cdist(x, y, p, mode), 0


pack.add(aten.cdist.default, lambda info, in_dims, x, y, p=2.0, compute_mode=None: cdist(
    info, in_dims, x, y, p, compute_mode))  # fmt: skip


@pack.rule(aten._euclidean_dist.default)
def euclidean_dist(info, in_dims, x, y):
    """(n, d), (m, d) -> (n, m)."""
    x, y = (ensure_bdim(v, d, info.batch_size) for v, d in zip((x, y), in_dims[:2], strict=True))
    return torch.cdist(x, y), 0


@pack.composite(aten._trilinear.default)
def trilinear(a, b, c, expand1, expand2, expand3, sumdim, unroll_dim=1):
    """The product of three tensors, each with new dims of size one, summed over some dims."""
    for dims, i in ((expand1, 0), (expand2, 1), (expand3, 2)):
        for d in sorted(dims):
            a, b, c = (x.unsqueeze(d) if i == k else x for k, x in enumerate((a, b, c)))
    return (a * b * c).sum(list(sumdim)) if sumdim else a * b * c


@pack.composite(aten.bilinear.default)
def bilinear(x, y, weight, bias=None):
    """(*, i), (*, j), (o, i, j), (o) -> (*, o)."""
    out = torch.einsum("...i,oij,...j->...o", x, weight, y)
    return out if bias is None else out + bias


pack.ask(
    aten.addmm.default,
    aten.addmv.default,
    aten.baddbmm.default,
    aten.addbmm.default,
    aten.addr.default,
    aten.cdist.default,
    aten.bilinear.default,
)
