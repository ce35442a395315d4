"""Products of cuBLAS and CUTLASS without batch dims: the mapped dim joins the rows, the columns, or the groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Level, RulePack, ensure_bdim, logical_rank, to_front
from vmap_core.extend import named_aten as aten

from ._merge import Call, contiguous
from ._torch import OpOverload

pack = RulePack("cuda.gemm")
TENSORWISE, ROWWISE = 0, 1  # torch.nn.functional.ScalingType


def _rows(x: Tensor, bdim: int) -> Tensor:
    """(M, K) per sample -> (B M, K), row after row in memory."""
    return contiguous(to_front(x, bdim).flatten(0, 1))


def _columns(x: Tensor, bdim: int) -> Tensor:
    """(K, N) per sample -> (K, B N), column after column in memory, as the kernels want it."""
    return _rows(to_front(x, bdim).mT, 0).mT


def _joined(call: Call, size: int, **changes: Any) -> tuple[Tensor, int]:
    """Call once, the mapped dim joined to the rows of ``self``, or else to the columns of ``mat2``."""
    if call.batched("self"):
        out = call.run(self=_rows(call.values["self"], call.dims["self"]), **changes)
        return out.unflatten(0, (size, -1)), 0
    out = call.run(mat2=_columns(call.values["mat2"], call.dims["mat2"]), **changes)
    return out.unflatten(1, (size, -1)), 1


@pack.rule(aten._int_mm.default)
def int_mm(info: Level, in_dims: Any, x: Tensor, mat2: Tensor) -> tuple[Tensor, int]:
    """(M, K), (K, N) int8 -> (M, N) int32."""
    call = Call(aten._int_mm.default, in_dims, (x, mat2), {})
    if (call.batched("self") and call.batched("mat2")) or not info.batch_size:
        return call.looped(info, warn=bool(info.batch_size))
    return _joined(call, info.batch_size)


def scaled_mm(op: OpOverload) -> Any:
    """Make the rule of a product of 8-bit matrices with scales.

    One call if only the side whose samples differ has scales, or a bias, of the samples' own, and a scale for each
    row or column; other scales (one number a sample, blocks, which the kernel wants swizzled) take a call a sample.
    """

    def scaled_mm(info: Level, in_dims: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
        """(M, K), (K, N), scales () or (M, 1) and (1, N) -> (M, N)."""
        call = Call(op, in_dims, args, kwargs)
        size = info.batch_size
        mine, scale = ("self", "scale_a") if call.batched("self") else ("mat2", "scale_b")
        mode = _scaling(call)
        free = {mine, *([scale] if mode == "row" else []), *(["bias"] if mine == "mat2" else [])}
        if not size or not mode or not call.batched(mine) or any(call.batched(n) for n in call.dims if n not in free):
            return call.looped(info, warn=bool(size))
        changes: dict[str, Any] = {}
        if mode == "row":
            x, bdim = _scale(call, scale)
            wide = (_rows if mine == "self" else _columns)(ensure_bdim(x, bdim, size), 0)
            changes[scale] = [wide] if isinstance(call.values[scale], list | tuple) else wide
        if mine == "mat2" and call.values.get("bias") is not None:
            changes["bias"] = call.front("bias", size).flatten()
        return _joined(call, size, **changes)

    return scaled_mm


pack.family(scaled_mm, aten._scaled_mm.default, aten._scaled_mm_v2.default)


def _scale(call: Call, name: str) -> tuple[Any, Any]:
    """Return a scale and its batch dim; the newer operator has lists of them, for scales at several levels."""
    value, bdim = call.values[name], call.dims[name]
    if not isinstance(value, list | tuple):
        return value, bdim
    return (value[0], bdim[0]) if len(value) == 1 else (None, None)


def _scaling(call: Call) -> str | None:
    """Say what the scales are for: the whole ``"tensor"``, each ``"row"`` and column, or None for what is neither."""

    def sample(x: Tensor, bdim: int | None) -> tuple[int, ...]:
        return tuple(n for d, n in enumerate(x.shape) if d != bdim)

    scales = [_scale(call, "scale_a"), _scale(call, "scale_b")]
    if any(x is None or x.dtype != torch.float32 for x, _ in scales):
        return None
    recipes = {tuple(call.values.get(name, ())) for name in ("recipe_a", "recipe_b")}
    shapes = [sample(x, bdim) for x, bdim in scales]
    if recipes <= {(), (TENSORWISE,)} and all(len(s) <= 2 and set(s) <= {1} for s in shapes):
        return "tensor"
    rows, columns = (sample(call.values[n], call.dims[n])[d] for n, d in (("self", 0), ("mat2", 1)))
    return "row" if recipes <= {(), (ROWWISE,)} and shapes == [(rows, 1), (1, columns)] else None


@pack.rule(aten._grouped_mm.default)
def grouped_mm(info: Level, in_dims: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
    """(T, K), (G, K, N), ends (G) -> (T, N); likewise (G, M, K), (K, T) -> (M, T); (M, T), (T, N) -> (G, M, N);
    (G, M, K), (G, K, N) -> (G, M, N).

    Every sample brings groups of its own. Where groups and their ends are shared, the samples' rows of a group follow
    each other instead, and no group is copied.
    """  # fmt: skip
    call = Call(aten._grouped_mm.default, in_dims, args, kwargs)
    size = info.batch_size
    if not size or call.values.get("bias") is not None:
        return call.looped(info, warn=bool(size))
    ranks = tuple(logical_rank(call.values[n], call.dims[n]) for n in ("self", "mat2"))
    x, y = call.front("self", size), call.front("mat2", size)
    if ranks == (3, 3):
        out = call.run(self=x.flatten(0, 1), mat2=y.flatten(0, 1))
        return out.unflatten(0, (size, -1)), 0
    offs, own_ends = call.values.get("offs"), call.batched("offs")
    if offs is None:
        return call.looped(info)  # to say what is missing
    if ranks == (2, 2):
        return _sums_by_group(call, x, y, size)
    long, groups = ("self", "mat2") if ranks == (2, 3) else ("mat2", "self")
    if not own_ends and not call.batched(groups):
        if long == "self":
            out = call.run(self=x.movedim(0, 1).flatten(0, 1), offs=offs * size)
            return out.unflatten(0, (-1, size)), 1
        out = call.run(mat2=y.movedim(0, 2).flatten(1, 2), offs=offs * size)
        return out.unflatten(1, (-1, size)), 2
    offs = _ends(call, size, x.shape[1] if long == "self" else y.shape[2])
    if long == "self":
        return call.run(self=x.flatten(0, 1), mat2=y.flatten(0, 1), offs=offs.flatten()).unflatten(0, (size, -1)), 0
    out = call.run(self=x.flatten(0, 1), mat2=y.movedim(0, 1).flatten(1, 2), offs=offs.flatten())
    return out.unflatten(1, (size, -1)), 1


def _ends(call: Call, size: int, length: int) -> Tensor:
    """(G) -> (B, G): where groups end, when the samples lie one after the other."""
    offs = ensure_bdim(call.values["offs"], call.dims["offs"], size)
    return offs + length * torch.arange(size, dtype=offs.dtype, device=offs.device).unsqueeze(1)


def _sums_by_group(call: Call, x: Tensor, y: Tensor, size: int) -> tuple[Tensor, int]:
    """(B, M, T), (B, T, N) -> (B, G, M, N): products over the columns of each group."""
    if not call.batched("offs") and not (call.batched("self") and call.batched("mat2")):
        if call.batched("self"):
            return call.run(self=x.flatten(0, 1)).unflatten(1, (size, -1)), 1
        return call.run(mat2=y.movedim(0, 1).flatten(1, 2)).unflatten(2, (size, -1)), 2
    length = x.shape[2]
    ends = _ends(call, size, length)
    rest = length * torch.arange(1, size + 1, dtype=ends.dtype, device=ends.device).unsqueeze(1)
    ends = torch.cat((ends, rest), 1)  # what a sample's groups leave over is a group too, or the next would get it
    out = call.run(self=x.movedim(0, 1).flatten(1, 2), mat2=y.flatten(0, 1), offs=ends.flatten())
    out = out.unflatten(0, (size, -1))
    return out.narrow(1, 0, out.shape[1] - 1), 0
