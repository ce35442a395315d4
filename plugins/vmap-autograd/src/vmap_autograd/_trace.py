"""What the transforms share: a function run once, on inputs that start a graph of their own."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vmap_core.extend import (
    BatchedTensor,
    Level,
    UnsupportedError,
    below_levels,
    current_levels,
    dispatch,
    leaves,
    make_batched,
    make_leaf,
    map_leaves,
    own_samples,
    user_location,
    without_modes,
)

from ._around import Around
from ._below import gradients_below
from ._checks import Argnums, only_tensors, replaced, select, split_aux
from ._reach import levels_met
from ._state import hooks_made, physical, recorded, usable
from ._torch import TreeSpec, dual_level, fwd_grad_enabled, tree_flatten, tree_unflatten
from ._walk import batched_vjp
from .accumulate import leaves_of


@dataclass
class Trace:
    """A function's outputs, and what they may be differentiated by.

    Attributes:
        inputs: the tensors among the chosen arguments, each the start of a graph.
        in_spec: how they make up the chosen arguments.
        out: what the function returned.
        aux: its second return value, with ``has_aux``.
        connected: whether something else than the inputs can be differentiated through the outputs.
        hooks: `hooks_made` before it ran.
    """

    inputs: list[Any]
    in_spec: TreeSpec
    out: Any
    aux: Any
    connected: bool
    hooks: int

    @property
    def recorded(self) -> bool:
        """Whether the backward pass must be differentiable: also for tangents, which some formulas else lose."""
        return (self.connected and torch.is_grad_enabled()) or dual_level() >= 0

    def result(self, tree: Any) -> Any:
        """Return tensors of the graph as the caller may have them: without it under no_grad, or if only the inputs require grad."""
        return tree if self.connected and torch.is_grad_enabled() else detached(tree)

    def gradients(self, outputs: list[Any], vectors: list[Any] | None, retain: bool, create: bool) -> list[Any]:
        """Return the gradients of the inputs, zeros where an output does not depend on one."""
        return gradients(outputs, self.inputs, vectors, retain, create, self.hooks)


def trace(
    func: Callable[..., Any],
    argnums: Argnums | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    has_aux: bool,
    name: str,
    within: type[_ForTangents] | None = None,
    met: Any = ...,
) -> Trace:
    """Run a function with grad mode on.

    Args:
        func: the function.
        argnums: which arguments to differentiate by; None for all of them.
        args: its arguments.
        kwargs: its keyword arguments.
        has_aux: whether it returns a pair, of which only the first is differentiated.
        name: the transform, for errors.
        within: a mode to run it in, made of the inputs.
        met: what `levels_met` has said of it; asked here, unless given.
    """
    hooks = hooks_made()
    with recorded():
        chosen = args if argnums is None else select(args, argnums)
        flat, spec = tree_flatten(chosen)
        only_tensors(flat)
        among = levels_met(func, (args, kwargs)) if met is ... else met
        inputs = [_own_input(x, among) for x in flat]
        args = (
            tree_unflatten(inputs, spec) if argnums is None else replaced(args, argnums, tree_unflatten(inputs, spec))
        )
        around = Around(func, (args, kwargs), name)
        if within is None and around.copies is None:
            out = func(*args, **kwargs)
        else:
            with within(inputs) if within else contextlib.nullcontext(), around.copies or contextlib.nullcontext():
                out = func(*args, **kwargs)
        around.check()
        out, aux = split_aux(out, has_aux, name)
    with without_modes():  # a level would be asked what a tensor is
        for leaf in map(physical, inputs):
            leaf._vmap_ended = True  # what is computed with it from here on leads to nobody's input
        connected = any([physical(x).requires_grad for x in flat]) or _reaches_others(out, inputs)
    return Trace(inputs, spec, out, aux, connected, hooks)


def gradients(
    outputs: Sequence[Any], inputs: Sequence[Any], vectors: Sequence[Any] | None, retain: bool, create: bool, hooks: int,
    of_linear: bool = False,
) -> list[Any]:  # fmt: skip
    """Return the gradients of inputs, zeros where no output depends on one; some outputs may have no graph."""
    at = [i for i, o in enumerate(outputs) if o.requires_grad]
    grads: Any = [None] * len(inputs)
    if at and inputs:
        ends, seeds = [outputs[i] for i in at], None if vectors is None else [vectors[i] for i in at]
        grads = gradients_below(ends, inputs, seeds, keep=retain, create=create, hooks=hooks, of_linear=of_linear)
        if grads is None:
            grads = _by_rules(ends, inputs, seeds, retain, create, of_linear)
    return [torch.zeros_like(x.detach()) if g is None else g for g, x in zip(grads, inputs, strict=True)]


def _by_rules(ends: Any, inputs: Any, seeds: Any, retain: bool, create: bool, of_linear: bool) -> Any:
    """Ask for the gradients at the levels."""
    apart = mixed(ends, inputs)
    if of_linear and (apart or mixed(inputs, ends)):
        raise UnsupportedError(
            f"vmap: tangents, at {user_location()}, for a function that has something batched from where it was not "
            f"looked for. Instead: pass what is batched as an argument."
        )
    with warnings.catch_warnings() if apart else contextlib.nullcontext():
        if apart:  # by one vector per sample: the advice that the rule gives for that is not for a transform
            warnings.simplefilter("ignore")
        options: Any = {"retain_graph": retain, "create_graph": create, "allow_unused": True}
        # a level is asked at once: torch.autograd would look at all that it is given first
        run = dispatch if type(ends[0]) is BatchedTensor else None
        return (
            torch.autograd.grad(ends, inputs, seeds, **options)
            if run is None
            else run(torch.autograd.grad, (ends, inputs, seeds), options)
        )


def gradients_of_rows(
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    rows: Sequence[Any],
    create: bool,
    hooks: int,
    of_linear: bool = False,
) -> list[Any] | None:
    """Return the same for several vectors at once, in front; None where they have to be lowered (`lowered_map`).

    Args:
        outputs: tensors that depend on the inputs.
        inputs: tensors with the batch dims of all levels that the outputs have one of.
        rows: physical tensors, the vectors' elements as each sample has them.
        create: whether to record the backward pass.
        hooks: `hooks_made` before the graph was recorded.
        of_linear: see `gradients_below`.
    """
    at = [i for i, o in enumerate(outputs) if o.requires_grad]
    if not of_linear and mixed([outputs[i] for i in at], inputs):
        return None
    with without_modes():
        grads: Any = [None] * len(inputs)
        if at and inputs:
            vectors = [_of_every_sample(rows[i], outputs[i]) for i in at]
            grads = batched_vjp(
                [physical(outputs[i]) for i in at], [*map(physical, inputs)], vectors,
                keep=True, create_graph=create, allow_unused=True, hooks=hooks,
            )  # fmt: skip
            if grads is None:
                return None
        count, own = rows[0].shape[0], [*map(physical, inputs)]
        grads = [
            x.new_zeros((1, *x.shape)).expand(count, *x.shape) if g is None else g
            for g, x in zip(grads, own, strict=True)
        ]
    return [_behind_rows(g, x) for g, x in zip(grads, inputs, strict=True)]


def mixed(outputs: Sequence[Any], inputs: Sequence[Any]) -> bool:
    """Tell whether an output is batched where an input is not: its gradient sums over samples, which are to be kept apart."""
    dims = [below_levels(o)[1].keys() for o in outputs]
    return any(not below_levels(x)[1].keys() >= d for x in inputs for d in dims)


def _of_every_sample(rows: Any, like: Any) -> Any:
    """Return rows of a sample's shape with the batch dims of a tensor, behind the first."""
    while type(like) is BatchedTensor:
        rows = rows if like._bdim is None else rows.unsqueeze(like._bdim + 1)
        like = like._value
    return rows.expand(rows.shape[0], *like.shape)


def _behind_rows(grad: Any, like: Any) -> Any:
    """Wrap a physical gradient, rows first, as the tensor is that it is of."""
    if type(like) is not BatchedTensor:
        return grad
    bdim = None if like._bdim is None else like._bdim + 1
    return make_batched(_behind_rows(grad, like._value), bdim, like._level)


class _ForTangents(TorchFunctionMode):
    """Lets reverse mode give what forward mode would.

    It computes layer_norm from elementary operations: PyTorch's formula for its second derivative takes the saved mean
    and deviation for constants. The derivatives that a `jvp` inside a `jvp` takes, two of the backward pass and one
    forward, are then silently wrong.

    And where the function switches forward mode off, what it computes is constant.
    """

    def __init__(self, inputs: list[Any]) -> None:
        """Watch a function of these inputs."""
        super().__init__()
        self.inputs = inputs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not fwd_grad_enabled() and torch.is_grad_enabled():  # both are off in a Function's forward
            if _reaches_others((args, kwargs), self.inputs):
                raise UnsupportedError(
                    f"vmap: forward mode is switched off inside a nested jvp, at {user_location()}, for something that "
                    f"reverse mode differentiates. Instead: detach what is to be constant."
                )
            with torch.no_grad():
                return func(*args, **kwargs)
        if func in (torch.layer_norm, torch.nn.functional.layer_norm):
            return _layer_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enable: bool = True
) -> Any:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise RuntimeError(f"Given normalized_shape={list(shape)}, got an input of shape {tuple(x.shape)}")
    dims = tuple(range(-len(shape), 0))
    centered = x - x.mean(dims, keepdim=True)
    out = centered * (centered.square().mean(dims, keepdim=True) + eps).rsqrt()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def forward_mode_serves(primals: list[Any]) -> bool:
    """Tell whether to take PyTorch's forward mode: it is free, and its result need not be differentiated by the primals.

    Its formulas for layer_norm and the linear algebra take saved intermediates for constants, that of softmax writes in
    place: differentiated again they are wrong, or an error.
    """
    return dual_level() < 0 and not (torch.is_grad_enabled() and any(p.requires_grad for p in primals))


def trace_for_tangents(
    func: Callable[..., Any], argnums: Argnums | None, args: Any, kwargs: Any, has_aux: bool, name: str, met: Any = ...
) -> Trace:
    """Run a function whose vjp is then differentiated by its vector."""
    return trace(func, argnums, args, kwargs, has_aux, name, _ForTangents, met)


def _own_input(x: Any, among: frozenset[Level] | None) -> Any:
    y = _expanded(x, among) if type(x) is Tensor and among is not None else own_samples(x, among)
    if not y.requires_grad:
        try:
            make_leaf(y)
        except RuntimeError:
            if not x.is_inference():
                raise
            make_leaf(y := own_samples(usable(x), among))
    return y


def _expanded(x: Tensor, among: frozenset[Level]) -> Any:
    """Return `own_samples` of a tensor from outside all levels: with all batch dims at once."""
    levels = current_levels()
    with without_modes():
        y: Any = x.view_as(x) if x.layout in (torch.strided, torch.jagged) else x.clone()
        sizes = [level.batch_size for level in levels if level in among]
        y = y.expand(*sizes, *x.shape) if sizes else y
    for level in levels:
        y = make_batched(y, 0 if level in among else None, level)
    return y


def _reaches_others(out: Any, inputs: list[Any]) -> bool:
    own = {id(physical(x)) for x in inputs}
    outputs = [o for o in leaves(out) if isinstance(o, Tensor)]
    return any(id(leaf) not in own and not hasattr(leaf, "_vmap_ended") for leaf in leaves_of(outputs, True))


def requires_grad(tree: Any) -> bool:
    """Tell whether a tensor of a tree requires grad."""
    return any(isinstance(x, Tensor) and x.requires_grad for x in leaves(tree))


def detached(tree: Any) -> Any:
    """Detach every tensor of a tree from the graph; tangents of forward mode stay."""
    return map_leaves(lambda x: _detached(x) if isinstance(x, Tensor) and x.requires_grad else x, tree)


def _detached(x: Any) -> Any:
    if dual_level() < 0:
        return x.detach()
    primal, tangent = forward_ad.unpack_dual(x)
    return x.detach() if tangent is None else forward_ad.make_dual(primal.detach(), tangent.detach())
