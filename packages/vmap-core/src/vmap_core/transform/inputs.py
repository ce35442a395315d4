"""The inputs of a mapped function: which of them are mapped, over which dim, and how many samples that makes.

Errors have the classes and texts of ``torch.func.vmap``, since its users match on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ..errors import UnsupportedError, function_name, user_location
from ..levels import tree as _tree
from ..levels.layout import mapped
from ..levels.level import Level
from ..levels.read import alive
from ..levels.tensor import BatchedTensor, make_batched
from ..torch_compat.trees import tree_flatten
from .subclasses import overridden, refuse_overriding


def mapped_args(args: tuple[Any, ...], dims: Iterable[int | None], level: Level) -> list[Any] | None:
    """Return the arguments as the level's, and tell it the batch size, if those to be mapped are tensors that agree on it.

    None sends the call the long way.
    """
    size = None
    inputs = []
    for a, d in zip(args, dims):  # noqa: B905  # dims may repeat for ever
        if d is not None:
            kind: Any = type(a)
            if not isinstance(a, Tensor):
                return None
            if kind is not Tensor and kind is not BatchedTensor and (a.is_nested or overridden(kind)):
                return None
            try:
                shape = a.shape
                n = shape[d]
            except (IndexError, RuntimeError):  # RuntimeError: a strided nested tensor has no shape
                return None
            if n != size and size is not None:
                return None
            size = n
            if not d and kind is Tensor and a.is_contiguous():  # as `mapped`, without the call
                a = make_batched(a, 0, level)
                a._rank = len(shape)
            else:
                a = mapped(a, d if d >= 0 else d + len(shape), level)
        inputs.append(a)
    if size is None:
        return None
    level.batch_size = size
    return inputs


def check_out_dims(out_dims: Any, func: Any) -> None:
    """Raise unless out_dims are ints and None."""
    leaves: list[Any] = []
    _tree.flatten(out_dims, leaves)
    for leaf in leaves:
        if leaf is not None and not isinstance(leaf, int):
            raise ValueError(
                f"vmap({function_name(func)}, ..., out_dims={out_dims}): `out_dims` must be an int, None or a python "
                f"collection of ints representing where in the outputs the vmapped dimension should appear."
            )


def check_in_dims(in_dims: Any, func: Any, args: tuple[Any, ...], axis_size: int | None, kw_in_dims: Any) -> None:
    """Raise unless there are in_dims and inputs."""
    extended = axis_size is not None or kw_in_dims
    if not isinstance(in_dims, int | tuple) and not (in_dims is None and extended):
        raise ValueError(
            f"vmap({function_name(func)}, in_dims={in_dims}, ...)(<inputs>): expected `in_dims` to be int or a "
            f"(potentially nested) tuple matching the structure of inputs, got: {type(in_dims)}."
        )
    if not args and not extended:
        raise ValueError(
            f"vmap({function_name(func)})(<inputs>): got no inputs. Maybe you forgot to add inputs, or you are trying "
            f"to vmap over a function with no inputs. The latter is unsupported."
        )


def mapped_kwargs(kw_in_dims: dict[str, Any], func: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that are to be mapped."""
    missing = [k for k in kw_in_dims if k not in kwargs]
    if missing:
        raise ValueError(
            f"vmap({function_name(func)}, kw_in_dims={kw_in_dims}, ...)(<inputs>): got no keyword argument "
            f"{', '.join(map(repr, missing))} to map over, only {sorted(kwargs)}."
        )
    return {k: kwargs[k] for k in kw_in_dims}


def dims_of_leaves(
    func: Any, name: str, in_dims: Any, tree: Any, spec: Any, leaves: list[Any], sizes: list[int]
) -> list[int | None]:
    """Return the in_dim of each leaf, put live tensors in the place of dead ones, and add the sizes that are mapped over.

    Raises:
        ValueError: the structures do not fit, or a dim is none of its leaf.
        UnsupportedError: a tensor has no samples of one size, or of Tensor's own class.
    """
    dims = _tree.broadcast(in_dims, spec)
    if dims is None:
        raise ValueError(
            f"vmap({function_name(func)}, {name}={in_dims}, ...)(<inputs>): in_dims is not compatible with the "
            f"structure of `inputs`. in_dims has structure {tree_flatten(in_dims)[1]} but inputs has structure "
            f"{tree_flatten(tree)[1]}."
        )
    for i, (leaf, dim) in enumerate(zip(leaves, dims, strict=True)):
        if dim is None:
            continue
        if type(leaf) is not Tensor:
            leaves[i] = leaf = alive(leaf)
        elif type(dim) is int and dim >= 0:  # the commonest, in fewer steps
            try:
                sizes.append(leaf.shape[dim])
                continue
            except (IndexError, RuntimeError):
                pass  # to be told below
        problem = _problem(leaf, dim)
        if problem is not None:
            raise ValueError(f"vmap({function_name(func)}, {name}={in_dims}, ...)(<inputs>): {problem}")
        if leaf.is_nested:
            raise UnsupportedError(
                f"vmap: an input, at {user_location()}, is a nested tensor, whose samples differ in size. Instead: pad it "
                f"(torch.nested.to_padded_tensor), and map over the lengths beside it."
            )
        refuse_overriding(leaf)
        dims[i] = dim % leaf.dim()
        sizes.append(leaf.shape[dim])
    return dims


def _problem(leaf: Any, dim: Any) -> str | None:
    """Say why a leaf cannot be mapped over a dim."""
    if not isinstance(dim, int):
        return f"Got in_dim={dim} for an input but in_dim must be either an integer dimension or None."
    if not isinstance(leaf, Tensor):
        return (
            f"Got in_dim={dim} for an input but the input is of type {type(leaf)}. We cannot vmap over non-Tensor "
            f"arguments, please use None as the respective in_dim"
        )
    rank = leaf.dim()
    if dim < -rank or dim >= rank:
        return (
            f"Got in_dim={dim} for some input, but that input is a Tensor of dimensionality {rank} so expected in_dim "
            f"to satisfy -{rank} <= in_dim < {rank}."
        )
    return None


def batch_size(sizes: list[int]) -> int:
    """Return the size that all have."""
    if not sizes:
        raise ValueError("vmap: Expected at least one Tensor to vmap over")
    if sizes.count(sizes[0]) != len(sizes):
        raise ValueError(
            f"vmap: Expected all tensors to have the same size in the mapped dimension, got sizes {sizes} for the "
            f"mapped dimension"
        )
    return sizes[0]


def mapped_leaves(leaves: Sequence[Any], dims: Sequence[int | None], level: Level) -> list[Any]:
    """Return leaves as the level's tensors, and as they are where they have no dim."""
    return [
        leaf if d is None
        else make_batched(leaf, 0, level) if not d and type(leaf) is Tensor and leaf.is_contiguous()  # as `mapped`
        else mapped(leaf, d, level)
        for leaf, d in zip(leaves, dims, strict=True)
    ]  # fmt: skip
