"""One call of an autograd.Function at a level: between what its methods see and what autograd records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from vmap_core.extend import (
    BatchedTensor,
    Level,
    UnsupportedError,
    become,
    current_levels,
    mapped,
    resumed,
    unwrap,
    user_location,
    wrap,
)

from ._torch import transforms_active
from .by_sample import by_sample_if_need_be
from .grad import aligned


class Context(FunctionCtx):
    """The ``ctx`` that the Function's methods get. Attributes stay here; tensors to save go to the physical ctx."""

    to_save: tuple[Any, ...] = ()
    saved_for_forward: tuple[Any, ...] = ()
    dirty_tensors: tuple[Any, ...] = ()
    non_differentiable: tuple[Any, ...] = ()
    materialize_grads = True
    needs_input_grad: tuple[bool, ...] = ()
    saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for backward; and for jvp, unless save_for_forward names others."""
        self.to_save = tensors


class FunctionCall:
    """A call ``cls.apply(*args)``.

    Attributes:
        level: the level it was made at.
        cls: the Function.
        values: physical values of the arguments that are tensors.
        dims: their batch dims.
        out_dims: batch dims of the outputs, tensors or not; known after forward.
    """

    def __init__(self, level: Level, cls: Any, args: tuple[Any, ...]) -> None:
        """Sort out the arguments."""
        self.level, self.cls, self.args = level, cls, args
        self.count = len(args)
        self.inner = args[0] if args and isinstance(args[0], FunctionCall) else None  # the call of a level further in
        self.at = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        self.values, self.dims, self.batched = unwrap(level, tuple(args[i] for i in self.at))
        self.metas = [_meta(args[i]) for i in self.at]
        # The gradient of a shared argument is the sum over samples of what backward makes of each one's gradient:
        # then every output has a batch dim, also where all samples have the same value.
        needs = [torch.is_grad_enabled() and v.requires_grad for v in self.values]
        self.per_sample = any(needs)
        self.ctx = Context()
        self._set_needs(needs)

    def is_at(self, level: Level) -> bool:
        """Tell whether it was made at a level, or by a call at that one."""
        return self.level is level or (self.inner is not None and self.inner.is_at(level))

    def _seen(self, value: Any, bdim: int | None) -> Any:
        """Return a physical value as the Function's methods see it."""
        return value if bdim is None or value is None else mapped(value, bdim, self.level)

    def _set_needs(self, needs: Sequence[bool]) -> None:
        by_position = dict(zip(self.at, needs, strict=True))
        self.ctx.needs_input_grad = tuple(by_position.get(i, False) for i in range(self.count))

    def _physical(self, x: Any) -> Any:
        return unwrap(self.level, (x,))[0][0]

    # forward

    def forward(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Run the class's forward on what the mapped function sees; return the physical values of its tensors."""
        self.inputs = [self._seen(v, d) for v, d in zip(values, self.dims, strict=True)]
        args = list(self.args)
        for i, x in zip(self.at, self.inputs, strict=True):
            args[i] = x
        legacy = self.cls.setup_context is Function.setup_context
        with resumed((self.level,)):
            if legacy:
                out = self.cls.forward(self.ctx, *args)
            else:
                out = self.cls.forward(*args)
                self.cls.setup_context(self.ctx, tuple(args), out)
        self.single = not isinstance(out, tuple)
        self.outputs = (out,) if self.single else out
        self.out_at = [i for i, o in enumerate(self.outputs) if isinstance(o, Tensor)]
        self.out_metas = {i: _meta(self.outputs[i]) for i in self.out_at}
        results, self.out_dims, _ = unwrap(self.level, self.outputs)
        fixed = [id(t) for t in (*self.ctx.non_differentiable, *self.ctx.dirty_tensors)]
        if legacy:  # one that returns its input may save it, too, which the other style may not
            for i in self.out_at:
                if any(results[i] is v for v in values) and id(self.outputs[i]) not in fixed:
                    results[i] = results[i].view_as(results[i])
        for i in self.out_at:
            if self.per_sample and self.out_dims[i] is None and id(self.outputs[i]) not in fixed:
                results[i], self.out_dims[i] = _repeated(results[i], self.level.batch_size)
        self.extras = self._intermediates()
        return (*(results[i] for i in self.out_at), *map(self._physical, self.extras))

    def _intermediates(self) -> list[Any]:
        """Return tensors to save that are neither inputs nor outputs: torch.func's transforms must see those too."""
        if not transforms_active():
            return []
        known = {id(t) for t in (*self.inputs, *self.outputs)}
        saved = (*self.ctx.to_save, *self.ctx.saved_for_forward)
        return list({id(t): t for t in saved if t is not None and id(t) not in known}.values())

    def set_up(self, ctx: Any, values: Sequence[Any], results: Sequence[Any]) -> None:
        """Tell autograd's ctx what the class's forward has told its own."""
        user = self.ctx
        known = {id(x): v for x, v in zip(self.inputs, values, strict=True)}
        written = [id(x) for x in user.dirty_tensors]
        shown = [*(self.outputs[i] for i in self.out_at), *self.extras]
        made = {id(x): v for x, v in zip(shown, results, strict=True) if id(x) not in known or id(x) in written}
        dims = {id(self.outputs[i]): self.out_dims[i] for i in self.out_at if id(self.outputs[i]) in made}
        known |= made  # an input that is returned as it is stays the input

        def physical(tensors: Sequence[Any]) -> list[Any]:
            return [known[id(t)] if id(t) in known else self._physical(t) for t in tensors]

        def bdims(tensors: Sequence[Any]) -> list[int | None]:
            return [dims[id(t)] if id(t) in dims else unwrap(self.level, (t,))[1][0] for t in tensors]

        def inside(tensors: Sequence[Any]) -> list[bool]:
            return [type(t) is BatchedTensor and t._level is self.level for t in tensors]

        for_forward = user.saved_for_forward or user.to_save
        self.saved_dims = bdims(user.to_save), inside(user.to_save)
        self.forward_dims = bdims(for_forward), inside(for_forward)
        ctx.save_for_backward(*physical(user.to_save))
        if user.saved_for_forward:
            ctx.save_for_forward(*physical(user.saved_for_forward))
        if user.dirty_tensors:
            ctx.mark_dirty(*physical(user.dirty_tensors))
        ctx.mark_non_differentiable(*physical(user.non_differentiable), *results[len(self.out_at) :])
        ctx.set_materialize_grads(False)

    def outputs_of(self, results: tuple[Any, ...]) -> Any:
        """Return what ``apply`` returns, from what the physical call returned."""
        user, outputs = self.ctx, list(self.outputs)
        dirty = {id(t) for t in user.dirty_tensors}
        arguments = {id(x): self.args[i] for x, i in zip(self.inputs, self.at, strict=True) if id(x) in dirty}
        for i, result in zip(self.out_at, results, strict=False):
            argument = arguments.get(id(outputs[i]))
            if argument is None:
                outputs[i] = wrap(self.level, result, self.out_dims[i])
            else:
                outputs[i] = argument
                if type(argument) is BatchedTensor:
                    become(argument, result, argument._bdim, argument._origin)
        user.to_save = user.saved_for_forward = user.dirty_tensors = user.non_differentiable = ()
        del self.outputs, self.inputs, self.extras, self.args, self.values
        return outputs[0] if self.single else tuple(outputs)

    # backward

    def backward(self, ctx: Any, grads: Sequence[Any]) -> tuple[Any, ...]:
        """Run the class's backward: physical gradients of the outputs -> of the arguments that are tensors."""
        cls, user = self.cls, self.ctx
        self._set_needs(ctx.needs_input_grad[1:])
        user.saved_tensors = self._saved(ctx, self.saved_dims)
        function = cls.backward if cls.vjp is Function.vjp else cls.vjp
        with in_backward(self.level), resumed((self.level,)):
            seen = self._seen_grads(grads)
            out = self._by_sample("backward", function, [seen] if getattr(cls, "boxed_grads_call", False) else seen)
            out = tuple(out) if isinstance(out, tuple | list) else (out,)
            if len(out) < self.count or any(g is not None for g in out[self.count :]):
                raise RuntimeError(
                    f"function {cls.__name__}Backward returned an incorrect number of gradients (expected "
                    f"{self.count}, got {len(out)})"
                )
            own = [out[i] for i in self.at]
            own = [
                g if g is None or g.shape == m[0] else g.sum_to_size(m[0]) for g, m in zip(own, self.metas, strict=True)
            ]
        user.saved_tensors = ()
        return tuple(
            None if g is None or not user.needs_input_grad[i] else self._of_argument(g, d)
            for i, g, d in zip(self.at, own, self.dims, strict=True)
        )

    def _by_sample(self, method: str, function: Any, args: Sequence[Any]) -> Any:
        """Call a method of the class, at the level; sample by sample, each with its own ctx, if it must be."""

        def of_sample(attributes: dict[str, Any], *args: Any) -> Any:
            ctx = Context()
            vars(ctx).update(attributes)
            return function(ctx, *args)

        name = f"the {method} of the autograd.Function {self.cls.__name__}"
        tensors = (*self.ctx.saved_tensors, *args)
        return by_sample_if_need_be(
            self.level, name, lambda: function(self.ctx, *args), of_sample, (vars(self.ctx), *args), tensors
        )

    def _saved(self, ctx: Any, dims: tuple[list[int | None], list[bool]]) -> tuple[Any, ...]:
        """Return saved tensors as they were: those of the level, batched or not, and those from outside."""
        saved = zip(ctx.saved_tensors, *dims, strict=True)
        return tuple(mapped(v, d, self.level) if own and v is not None else self._seen(v, d) for v, d, own in saved)

    def _seen_grads(self, grads: Sequence[Any]) -> list[Any]:
        given = dict(zip(self.out_at, grads, strict=False))
        seen = []
        for i, d in enumerate(self.out_dims):
            g = self._seen(given.get(i), d)
            if g is None and self.ctx.materialize_grads and i in self.out_metas:
                g = _zeros(self.out_metas[i])
            seen.append(g)
        return seen

    def _of_argument(self, g: Any, bdim: int | None) -> Any:
        """Return the physical gradient of an argument; one that samples share gets the sum."""
        if bdim is not None:
            return aligned(self.level, g, bdim)
        (value,), (dim,), _ = unwrap(self.level, (g,))
        if dim is not None:
            return value.sum(dim)
        return value * self.level.batch_size if self.per_sample else value

    def node_hook(self, hook: Any, before: bool) -> Any:
        """Return a hook for the graph's node that shows the user's hook the gradients of a sample.

        Args:
            hook: ``hook(grad_outputs)`` or ``hook(grad_inputs, grad_outputs)``.
            before: which of the two.
        """
        if self.inner is not None and self.inner.level in current_levels():
            hook = self.inner.node_hook(hook, before)

        def physical(*grads: Any) -> Any:
            seen = [tuple(self._seen_grads(grads[-1]))]
            at, dims = self.out_at, [self.out_dims[i] for i in self.out_at]
            if not before:
                at, dims = list(range(len(self.dims))), self.dims  # the graph has no edges to other arguments
                seen.insert(0, tuple(map(self._seen, grads[0], dims)))
            with resumed((self.level,)):
                new = hook(*seen)
            if new is None:
                return None
            return tuple(
                None if new[i] is None else self._of_argument(new[i], d) for i, d in zip(at, dims, strict=True)
            )

        return physical

    # forward mode

    def jvp(self, ctx: Any, tangents: Sequence[Any]) -> tuple[Any, ...]:
        """Run the class's jvp: physical tangents of the arguments -> of the outputs."""
        given: list[Any] = [None] * self.count
        for i, t, d, meta in zip(self.at, tangents, self.dims, self.metas, strict=True):
            given[i] = self._seen(t, d)
            if t is None and self.ctx.materialize_grads and (meta[1].is_floating_point or meta[1].is_complex):
                given[i] = _zeros(meta)
        self.ctx.saved_tensors = self._saved(ctx, self.forward_dims) if ctx.saved_tensors else ()  # no backward pass
        with resumed((self.level,)):
            out = self._by_sample("jvp", self.cls.jvp, given)
        out = out if isinstance(out, tuple) else (out,)
        results = [None if out[i] is None else self._of_output(out[i], self.out_dims[i]) for i in self.out_at]
        return (*results, *(None for _ in self.extras))

    def _of_output(self, tangent: Any, bdim: int | None) -> Any:
        if bdim is not None:
            return aligned(self.level, tangent, bdim)
        (value,), (dim,), _ = unwrap(self.level, (tangent,))
        if dim is not None:
            raise UnsupportedError(
                f"vmap: the jvp of the autograd.Function {self.cls.__name__} gives a batched tangent for an output that "
                f"all samples share, at {user_location()}. Instead: let the output depend on a mapped input."
            )
        return value


def _repeated(x: Any, size: int) -> tuple[Any, int]:
    """Return a result of which every sample is to have its own, and the batch dim.

    It takes no memory before it is viewed or written to (see `vmap_core.levels.layout`), and is no view to autograd, which
    would refuse to write to a Function's.
    """
    if not x.ndim:
        return x.expand(size).clone(), 0
    return x.expand(size, *x.shape).movedim(0, 1).detach(), 1


def _meta(x: Any) -> tuple[torch.Size, torch.dtype, torch.device]:
    return x.shape, x.dtype, x.device


def _zeros(meta: tuple[torch.Size, torch.dtype, torch.device]) -> Tensor:
    return torch.zeros(meta[0], dtype=meta[1], device=meta[2])


_backward_levels: list[Level] = []


@contextlib.contextmanager
def in_backward(level: Level) -> Iterator[None]:
    """Say that a backward pass runs at a level: what it accumulates into shared leaves is wanted."""
    _backward_levels.append(level)
    try:
        yield
    finally:
        _backward_levels.remove(level)


def runs_backward(level: Level) -> bool:
    """Tell whether a backward pass runs at a level, in a Function's backward."""
    return level in _backward_levels
