"""What the tests of rule files share: a table of calls, each compared with the Python loop in several dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from vmap_core import vmap
from vmap_core.testing import batched, check_rule, choices, loop, mapped, nested_choices

REFUSALS = (RuntimeError, IndexError, TypeError, ValueError)
OTHERS = (torch.bfloat16, torch.int64, torch.bool)


def check_call(op: Callable[..., Any], *args: Any, dtypes: Sequence[torch.dtype] = OTHERS, **options: Any) -> None:
    """Compare a call with the loop as `check_rule` does, and again with its floating tensors in other dtypes.

    Where PyTorch refuses a dtype for one sample, the mapped call has to refuse it too, unless it is a kernel that is
    missing.

    Args:
        op: the operator.
        *args: one sample: tensors, lists of them, and other arguments.
        dtypes: the other dtypes; those without gradients, at one level and for one batch size.
        **options: of `check_rule`.
    """
    assert check_rule(op, *args, **options)
    leaves, spec = tree_flatten(args)
    for dtype in dtypes:
        sample = [_cast(leaf, dtype) for leaf in leaves]
        try:
            op(*tree_unflatten([x.clone() if isinstance(x, Tensor) else x for x in sample], spec))
        except NotImplementedError:
            continue  # no kernel for the dtype: the one of a batch may have it
        except REFUSALS:
            with pytest.raises(REFUSALS):
                _mapped(op, sample, spec)
            continue
        fixed = {**options, "gradients": False, "nested": False, "batch_sizes": (3,)}
        assert check_rule(op, *tree_unflatten(sample, spec), **fixed)


def check_layout(op: Callable[..., Tensor], *args: Any) -> None:
    """Check that the result of a call lies in memory as in the loop, wherever the batch dims of its tensors are."""
    leaves, spec = tree_flatten(args)
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def function(*tensors: Any) -> list[Tensor]:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        out = op(*tree_unflatten(filled, spec))
        return [torch.tensor([s for n, s in zip(out.shape, out.stride(), strict=True) if n > 1])]

    sample = [leaves[k] for k in places]
    ranks = [t.ndim for t in sample]
    for levels, sizes in [*(([dims], (3,)) for dims in choices(ranks)), *((d, (3, 2)) for d in nested_choices(ranks))]:
        physical = batched(sample, levels, sizes, "rolled")
        found, expected = mapped(vmap, function, physical, levels), loop(function, physical, levels)
        assert torch.equal(*found, *expected), f"in_dims {levels}: strides {found}, expected {expected}"


def check_refused(op: Callable[..., Any], *args: Any) -> None:
    """Check that a mapped call is refused, as the call with one sample is, also where only one tensor is mapped."""
    with pytest.raises(REFUSALS):
        op(*args)
    leaves, spec = tree_flatten(args)
    for alone in (None, *(k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor))):
        with pytest.raises(REFUSALS):
            _mapped(op, leaves, spec, alone)


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    """Return a floating tensor in another dtype: several integers, and both truth values."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    if dtype == torch.bool:
        return leaf > 0
    return leaf.to(dtype) if dtype.is_floating_point or dtype.is_complex else (4 * leaf).to(dtype)


def _mapped(op: Callable[..., Any], leaves: list[Any], spec: Any, alone: int | None = None) -> Any:
    """Map a call over two copies of each of its tensors, or of one of them alone."""
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def function(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return op(*tree_unflatten(filled, spec))

    dims = tuple(0 if alone in (None, k) else None for k in places)
    given = (leaves[k] if d is None else torch.stack([leaves[k]] * 2) for k, d in zip(places, dims, strict=True))
    return vmap(function, in_dims=dims)(*given)
