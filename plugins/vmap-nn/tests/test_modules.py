"""PyTorch's own module database: each module with its input mapped, its parameters, and both, against the loop.

Outputs, buffers and outer gradients are compared, without the slow loop. Random modules draw the ``same`` numbers for
every sample, as the loop does from one seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.testing._internal.common_modules import ModuleInfo, ModuleInput, module_db
from torch.utils._pytree import tree_flatten, tree_unflatten

from vmap_core import DataDependentError, InplaceError, fallback_policy, vmap
from vmap_core.testing import difference, loop, mapped, rows, strongest, with_gradients

SIZE = 3
SAMPLES = 16  # at most, of the hundreds that some modules have

SHARED = "in training the loop updates running statistics that the samples share, one after the other; an error says what to do"
COUNTED = SHARED + ". With momentum=None the module reads its mapped counter, too"

# name -> (the errors that training may raise, why)
KNOWN: dict[str, tuple[tuple[type[Exception], ...], str]] = {
    **{f"nn.BatchNorm{n}d": ((InplaceError, DataDependentError), COUNTED) for n in (1, 2, 3)},
    **{f"nn.InstanceNorm{n}d": ((InplaceError,), SHARED) for n in (1, 2, 3)},
}


def spread(samples: list[ModuleInput], count: int = SAMPLES) -> list[ModuleInput]:
    """Return ``count`` of the samples, from all over the list."""
    return [samples[i * len(samples) // count] for i in range(count)] if len(samples) > count else samples


def cases(info: ModuleInfo, training: bool) -> Iterator[tuple[str, Callable[..., list[Tensor]], list[Tensor], int]]:
    """Yield a label, a function of tensors, one sample of them, and how many of them are parameters and buffers."""
    torch.manual_seed(0)
    samples = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=training)
    for sample in spread(samples):
        if sample.forward_input is None:
            continue
        given = sample.constructor_input
        with warnings.catch_warnings():  # encoders say why they take no nested tensors
            warnings.simplefilter("ignore", UserWarning)
            module = info.module_cls(*given.args, **given.kwargs).train(training)
        args = (sample.forward_input.args, sample.forward_input.kwargs)
        if any(torch.nn.parameter.is_lazy(p) for p in module.parameters()):
            module(*args[0], **args[1])
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        leaves, spec = tree_flatten(args)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        buffers = len(dict(module.named_buffers()))
        yield (
            f"{sample.desc} {given.args} {given.kwargs}"[:200],
            function(module, list(state), buffers, leaves, spec, places),
            [t.detach().clone() for t in (*state.values(), *(leaves[i] for i in places))],
            len(state),
        )


def function(
    module: torch.nn.Module, names: list[str], buffers: int, leaves: list[Any], spec: Any, places: list[int]
) -> Callable[..., list[Tensor]]:
    """Return a function of parameters, buffers and inputs that gives outputs and buffers."""

    def run(*tensors: Any) -> list[Tensor]:
        state = dict(zip(names, tensors, strict=False))
        filled = list(leaves)
        for place, tensor in zip(places, tensors[len(names) :], strict=True):
            filled[place] = tensor
        args, kwargs = tree_unflatten(filled, spec)
        torch.manual_seed(0)
        out = functional_call(module, state, args, kwargs)
        written = list(state.values())[len(names) - buffers :]
        return [o for o in tree_flatten(out)[0] if isinstance(o, Tensor)] + written

    return run


def compare(run: Callable[..., list[Tensor]], sample: list[Tensor], dims: tuple[int | None, ...]) -> str:
    """Return how mapping differs from the loop, or an empty string."""
    strength = strongest(run, [t.clone() for t in sample])
    if strength is None:
        return ""  # a sample of an error
    physical = [
        t if d is None else torch.stack(rows(t, SIZE, strength), d) for t, d in zip(sample, dims, strict=True)
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected, differentiate = with_gradients(lambda inputs: loop(run, writable(inputs), [dims]), physical), True
        except RuntimeError:  # class weights and the like have no gradient
            expected, differentiate = loop(run, writable(physical), [dims]), False
        if differentiate:
            got = with_gradients(
                lambda inputs: mapped(vmap, run, writable(inputs), [dims], randomness="same"), physical
            )
        else:
            got = mapped(vmap, run, writable(physical), [dims], randomness="same")
    return difference(expected, got, slack=10)


def writable(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies on the graph: statistics are written to."""
    return [t.clone() for t in tensors]


CASES = [(info, training) for info in module_db for training in (False, True)]


@pytest.mark.parametrize("mapped_", ["input", "parameters", "both"])
@pytest.mark.parametrize(("info", "training"), CASES, ids=[f"{i.name}-{'train' if t else 'eval'}" for i, t in CASES])
def test_module(info: ModuleInfo, training: bool, mapped_: str) -> None:
    allowed, _ = KNOWN.get(info.name, ((), "")) if training else ((), "")
    problems = []
    for label, run, sample, state in cases(info, training):
        dims = tuple(
            0 if mapped_ == "both" or (mapped_ == "input") == (i >= state) else None for i in range(len(sample))
        )
        if all(d is None for d in dims):
            continue
        try:
            with fallback_policy("error"):
                problem = compare(run, sample, dims)
        except Exception as error:
            problem = "" if isinstance(error, allowed) else f"{type(error).__name__}: {error}"
        if problem:
            problems.append(f"{label}: {problem}"[:600])
    assert not problems, f"{len(problems)} of them: " + "\n".join(problems[:4])
