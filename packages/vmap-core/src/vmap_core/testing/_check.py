"""The check that a rule author calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import FallbackWarning
from ..levels.tree import broadcast, flatten
from ..observe.difference import difference, empty_difference
from ..rulekit.packs import checking
from ..torch_compat.trees import tree_flatten, tree_unflatten
from ..transform.vmap import vmap
from ._loop import loop, mapped, with_gradients
from ._samples import Levels, batched, choices, nested_choices, strongest


def check_rule(
    op: Callable[..., Any],
    *args: Any,
    in_dims: Any = None,
    nested: bool = True,
    batch_sizes: tuple[int, ...] = (3, 1, 0),
    gradients: bool = True,
    fallback: bool = False,
    randomness: str = "error",
    **kwargs: Any,
) -> int:
    """Check that an operator, mapped, equals the Python loop over the batch.

    Batches are made from one sample. The operator is mapped over the first dim, the last and a middle one of all its
    tensors, of each alone and of all but one; at two levels; with every batch size. Outputs are compared in value,
    shape, dtype and container, and so are the gradients for the inputs where there are any.

    Args:
        op: the operator, as one calls it. What it writes to its tensors is compared too; cases where it writes to a
            tensor that the samples share are left out, since vmap refuses them.
        *args: one sample: tensors, containers of them, and other arguments.
        in_dims: check only these, given as for vmap over ``args``; None for all choices.
        nested: check two levels too.
        batch_sizes: the sizes to try.
        gradients: compare gradients too.
        fallback: allow the slow loop.
        randomness: for an operator that draws: ``"same"`` compares it with a loop that starts every sample from one
            state; ``"different"`` compares shapes and dtypes, and wants samples that are equal to come out different.
        **kwargs: keyword arguments of the operator; tensors among them are mapped as well.

    Returns:
        The number of comparisons made.

    Raises:
        AssertionError: a result differs, or the slow loop ran; with the operator, in_dims and shapes.
        RuleError: the rule returned something else than an output and its batch dims.
        Exception: what the mapped operator raised, with a note that says the same.

    Examples:
        >>> import torch
        >>> from vmap_core.testing import check_rule
        >>> check_rule(torch.dot, torch.randn(3), torch.randn(3)) > 0
        True
    """
    leaves, spec = tree_flatten((args, kwargs))
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[k] for k in places]
    containers: list[Any] = []

    def function(*sample: Any) -> list[Any]:
        filled = list(leaves)
        for place, tensor in zip(places, sample, strict=True):
            filled[place] = tensor
        inner_args, inner_kwargs = tree_unflatten(filled, spec)
        outputs, container = tree_flatten(op(*inner_args, **inner_kwargs))
        containers.append(container)
        return [*(o for o in outputs if isinstance(o, Tensor)), *(sample[k] for k in written)]

    def seeded(*sample: Any) -> list[Any]:
        torch.manual_seed(0)
        return function(*sample)

    different = randomness == "different"
    written: list[int] = []
    copies = [t.detach().clone() for t in tensors]
    one = function(*copies)
    written = [k for k, copy in enumerate(copies) if copy._version]
    one += [copies[k] for k in written]
    strength = "equal" if different else strongest(function, tensors) or "equal"
    differentiable = gradients and not written and not different and _differentiable(function, tensors)

    if in_dims is None:
        plans = list(_plans([t.ndim for t in tensors], nested, batch_sizes))
    else:
        plans = [([_given(in_dims, args, kwargs)], (size,)) for size in batch_sizes]
    count = 0
    for levels, sizes in plans:
        if any(dims[k] is None for dims in levels for k in written):
            continue
        physical = batched(tensors, levels, sizes, strength)
        shapes = [tuple(t.shape) for t in physical]
        where = f"{getattr(op, '__name__', op)} mapped over in_dims {levels}, physical shapes {shapes}"
        containers.clear()

        def run(inputs: list[Tensor], levels: Levels = levels) -> list[Tensor]:
            torch.manual_seed(0)
            return mapped(vmap, function, inputs, levels, randomness=randomness)

        def run_loop(inputs: list[Tensor], levels: Levels = levels) -> list[Tensor]:
            return loop(seeded, inputs, levels)

        try:
            with warnings.catch_warnings(), checking():
                warnings.simplefilter("ignore" if fallback else "error", FallbackWarning)
                got = run([t.clone() for t in physical])
                got_gradients = with_gradients(run, physical) if differentiable and 0 not in sizes else []
        except FallbackWarning as warning:
            raise AssertionError(f"{where}: {warning}") from None
        except Exception as error:
            error.add_note(where)
            raise
        if 0 in sizes:
            problem = empty_difference(one, got, sizes)
        else:
            problem = difference(run_loop(physical), got, values=not different)
            if different and not problem and sizes[0] > 1 and all(torch.equal(o[0], o[1]) for o in got if o.numel()):
                problem = "samples that are equal drew the same"
        if not problem and any(c != containers[0] for c in containers):
            problem = f"containers {containers[0]}, expected {containers[-1]}"
        if not problem and got_gradients:
            problem = difference(with_gradients(run_loop, physical), got_gradients, slack=10)
            problem = problem and f"with gradients: {problem}"
        assert not problem, f"{where}: {problem}"
        count += 1
    return count


def _plans(ranks: list[int], nested: bool, sizes: tuple[int, ...]) -> Iterator[tuple[Levels, tuple[int, ...]]]:
    """Yield in_dims and batch sizes: all choices under the first size, the plain ones under the others."""
    for k, size in enumerate(sizes):
        for dims in choices(ranks) if k == 0 else dict.fromkeys([(0,) * len(ranks), tuple(ranks)]):
            yield [dims], (size,)
    for levels in nested_choices(ranks) if nested else ():
        yield levels, (3, 2)


def _given(in_dims: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | None, ...]:
    """Return the batch dim of every tensor, not negative, from in_dims as for vmap; keyword arguments are shared."""
    leaves: list[Any] = []
    spec = flatten(args, leaves)
    dims = broadcast(in_dims, spec)
    if dims is None:
        raise ValueError(f"in_dims {in_dims} are not nested like the arguments")
    shared = [None for leaf in tree_flatten(kwargs)[0] if isinstance(leaf, Tensor)]
    chosen = [d for leaf, d in zip(leaves, dims, strict=True) if isinstance(leaf, Tensor)]
    ranks = [leaf.ndim for leaf in leaves if isinstance(leaf, Tensor)]
    return (*(d if d is None else d % (r + 1) for d, r in zip(chosen, ranks, strict=True)), *shared)


def _differentiable(function: Callable[..., list[Tensor]], tensors: list[Tensor]) -> bool:
    """Tell whether PyTorch itself differentiates the operator: one without a formula only fails in the backward pass."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            outputs = with_gradients(lambda inputs: function(*inputs), tensors)
    except (RuntimeError, NotImplementedError, UserWarning):
        return False
    return any(o.requires_grad for o in outputs)
