"""What torch.compile sees of vmap: an operator whose body is the function, recorded for one sample."""

from __future__ import annotations

from typing import Any

from ..levels import tree as _tree
from ..levels.level import Randomness
from ..torch_compat.one_graph import Transform, applied, show_as
from .inputs import dims_of_leaves, mapped_kwargs
from .vmap import vmap


def _seen(func: Any, in_dims: Any = 0, out_dims: Any = 0, randomness: Randomness = "error", **options: Any) -> Any:
    """Return what torch.compile sees as the mapped function."""

    def mapped(*args: Any, **kwargs: Any) -> Any:
        return applied("vmap", func, args, kwargs, (), (in_dims, out_dims, randomness), options)

    return mapped


def _apply(func: Any, args: Any, kwargs: Any, more: Any, *given: Any, **options: Any) -> Any:
    return vmap(func, *given, **options)(*args, **kwargs)


def _samples(
    args: Any, kwargs: Any, more: Any, in_dims: Any, out_dims: Any, randomness: Any, kw_in_dims: Any = None,
    axis_size: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """Return arguments as the function sees them for one sample."""
    by_name = mapped_kwargs(kw_in_dims or {}, None, kwargs)
    trees = [(args, in_dims), *[(by_name, kw_in_dims)][: bool(kw_in_dims)]]
    done = []
    for tree, dims in trees:
        leaves: list[Any] = []
        spec = _tree.flatten(tree, leaves)
        flat = dims_of_leaves(None, "in_dims", dims, tree, spec, leaves, [])
        done.append(_tree.unflatten(spec, iter([_first(x, d) for x, d in zip(leaves, flat, strict=True)])))
    return done[0], {**kwargs, **(done[1] if kw_in_dims else {})}


def _first(x: Any, dim: int | None) -> Any:
    if dim is None:
        return x
    return x.select(dim, 0) if x.shape[dim] else x.new_empty([n for i, n in enumerate(x.shape) if i != dim])


show_as(vmap, _seen, {"vmap": Transform(_apply, _samples)})
