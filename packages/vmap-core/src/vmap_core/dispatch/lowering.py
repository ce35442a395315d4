"""Door 2: calls that reach us through PyTorch's dispatcher.

What door 1 has no rule for is *lowered*: each BatchedTensor is wrapped in a `LoweredTensor`, a real tensor of the
logical shape, and the original callable runs natively. Every ATen operation it makes comes back here and meets the
same table of rules. So every composite operator works as soon as its parts do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import ComplexGraphError, UnsupportedError, user_location
from ..levels.containers import LEAVES, leaves, map_leaves
from ..levels.layout import sample_layout
from ..levels.level import Level, call
from ..levels.tensor import BatchedTensor, make_batched
from ..torch_compat import autocast
from ..torch_compat.dispatcher import TorchDispatchMode, WithDispatchKeys, excluded_keys, included_keys
from ..torch_compat.functorch import transforms_active, with_transforms, without_transforms
from ..torch_compat.mode_stack import EnableTorchFunction, disabled_torch_function_impl, only_modes, without_modes
from ..torch_compat.operators import RANDOM
from ..torch_compat.tensors import make_wrapper


class LoweredTensor(Tensor):
    """A BatchedTensor as the dispatcher sees it: a wrapper of logical sizes without data."""

    _batched: BatchedTensor
    __torch_function__ = disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer an operation that came without our mode: from the autograd engine, or forward mode."""
        about_shapes = _ABOUT_SHAPES.get(func)
        if about_shapes is not None:
            return about_shapes(*args)
        if not all(t._batched._level.active for t in _lowered(args)):
            return func(*map_leaves(_without_dead, args), **(kwargs or {}))
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.is_complex() for a in leaves(args)):
            # PyTorch has resolved lazy conjugates below autograd: what they depend on is lost to the physical graph.
            raise ComplexGraphError("vmap: lowered tensors among complex ones, whose operations are to be recorded")
        return run_at_their_level(func, args, kwargs or {})


LEAVES.add(LoweredTensor)


def run_at_their_level(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run a call on lowered tensors at the innermost of their levels, as door 1 would."""
    level = max((t._batched._level for t in _lowered((args, kwargs))), key=lambda level: level.depth)
    with WithDispatchKeys(*level.dispatch_keys), only_modes(level.modes), EnableTorchFunction():
        return answer(level, func, args, kwargs)


# What forward mode asks about the tangent of every result; a sample has no storage of its own that could be larger.
_ABOUT_SHAPES: dict[Any, Callable[..., bool]] = {
    torch.ops.aten.is_same_size.default: lambda x, y: x.shape == y.shape,
    torch.ops.aten._has_same_storage_numel.default: lambda x, y: True,
}


def _lowered(args: Any) -> Iterator[LoweredTensor]:
    return (a for a in leaves(args) if type(a) is LoweredTensor)


def _without_dead(a: Any) -> Any:
    """Return zeros for a tensor whose level has gone.

    The engine comes to them only through symbolic zeros, whose graph is one of wrappers: what is computed from there
    is multiplied by zero.
    """
    if type(a) is LoweredTensor and not a._batched._level.active:
        return torch.zeros(a.shape, dtype=a.dtype, device=a.device)
    return a


def dispatch_keys() -> tuple[Any, Any]:
    """Return the dispatcher's state in this thread, which keys it includes and excludes: without autocast.

    What comes out below has been through autocast.
    """
    return included_keys(), excluded_keys() | autocast.KEYS


class _Lowering(TorchDispatchMode):
    """Also catches factories and plain tensors inside a lowered call."""

    def __init__(self, level: Level, functorch: list[Any] | None = None) -> None:
        super().__init__()
        self.level = level
        self.functorch = functorch
        self.outside = dispatch_keys()
        self.failure: Exception | None = None  # what an operation raised; TorchScript's interpreter loses the text

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _plain(func, args, kwargs):
            return func(*args, **kwargs)
        self.failure = None  # the one before was handled
        with WithDispatchKeys(*self.outside), only_modes(self.level.modes), EnableTorchFunction():
            try:
                if self.functorch is None:
                    return answer(self.level, func, args, kwargs)
                with with_transforms(self.functorch):
                    return answer(self.level, func, args, kwargs)
            except Exception as error:
                self.failure = error
                raise

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler for us."""
        return False


def _plain(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Tell whether an operation writes to, or views, plain tensors only: those stay what they are."""
    if not func._schema.is_mutable and not any(r.alias_info for r in func._schema.returns):
        return False
    if RANDOM in func.tags:
        return False
    return next(_lowered((args, kwargs)), None) is None


def lower(x: BatchedTensor, requires_grad: bool = False) -> LoweredTensor:
    """Wrap a BatchedTensor for the dispatcher.

    Args:
        x: the tensor.
        requires_grad: what the wrapper says of itself. Composite operators choose by it what to keep for the backward
            pass; the graph itself is recorded on the physical tensors.
    """
    value, bdim = x._value, x._bdim
    if value.layout is not torch.strided:
        raise UnsupportedError(f"vmap: no rule for this operation on a {x.layout} tensor, at {user_location()}")
    shape = value.shape if bdim is None else value.shape[:bdim] + value.shape[bdim + 1 :]
    strides, offset = sample_layout(value, bdim, not bdim or x._origin is not None)
    wrapped = make_wrapper(
        LoweredTensor, shape, strides=strides, storage_offset=offset, dtype=value.dtype,
        device=value.device, requires_grad=requires_grad,
    )  # fmt: skip
    wrapped._batched = x
    return wrapped


def _at(level: Level, x: BatchedTensor) -> BatchedTensor:
    """Return a tensor of another level as one that is unbatched at this level: C++ must only meet real tensors."""
    return x if x._level is level else make_batched(x, None, level)


def answer(level: Level, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an ATen operation on lowered tensors by its rule, decomposition or loop."""
    known: dict[int, LoweredTensor] = {}

    def raise_(a: Any) -> Any:
        if type(a) is LoweredTensor and a._batched._level is level:  # one of a level further out is physical here
            known[id(a._batched)] = a
            return a._batched
        return a

    def lower_(a: Any) -> Any:
        if type(a) is BatchedTensor:
            return known[id(a)] if id(a) in known else lower(_at(level, a))
        return a

    args = tuple([raise_(a) if type(a) is LoweredTensor else map_leaves(raise_, a) for a in args])
    kwargs = {k: map_leaves(raise_, v) for k, v in kwargs.items()}
    out = call(level, func, args, kwargs)
    return lower_(out) if type(out) is BatchedTensor else map_leaves(lower_, out)


def run_lowered(
    level: Level, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, mode: bool = True,
    mutates: bool = False,
) -> Any:  # fmt: skip
    """Run a native function on lowered arguments and return what it gave, raised again.

    Args:
        level: the level whose tensors are lowered, off the stack.
        function: a C++ function of PyTorch, or what calls one.
        args: its arguments, BatchedTensors among them, also in containers.
        kwargs: its keyword arguments.
        mode: also catch operations without a batched operand (factories, random operations). The autograd engine
            does without: what it computes from saved tensors alone is the same for all samples.
        mutates: the function writes to its arguments, which therefore must not look like leaves of a graph.
    """

    record = mode and not mutates and torch.is_grad_enabled()
    functorch = mode and transforms_active()

    def lower_(a: Any) -> Any:
        if type(a) is BatchedTensor:
            return lower(_at(level, a), requires_grad=record and a.requires_grad)
        # A wrapper of torch.func's; a lazy conjugate, which the dispatcher would resolve below autograd.
        if isinstance(a, Tensor) and (functorch or (mode and (a.is_conj() or a.is_neg()))):
            return lower(make_batched(a, None, level), requires_grad=record and a.requires_grad)
        return a

    def raise_(a: Any) -> Any:
        if type(a) is LoweredTensor:
            return a._batched if a._batched._level.active else _without_dead(a)
        if isinstance(a, Tensor):  # a symbolic zero of the engine's: its graph is one of wrappers, and leads nowhere
            return a.detach() if a._is_zerotensor() else a
        return a

    def run() -> Any:
        return map_leaves(raise_, function(*lowered, **lowered_kwargs))

    lowered = [lower_(a) if type(a) is BatchedTensor else map_leaves(lower_, a) for a in args]
    lowered_kwargs = {k: map_leaves(lower_, v) for k, v in kwargs.items()}
    # Levels further out must not see the wrappers: they come back for every physical operation.
    before = level.modes, level.dispatch_keys
    with without_modes() as modes:
        level.modes, level.dispatch_keys = modes, dispatch_keys()
        try:
            if not mode:
                return run()
            if not functorch:
                with _Lowering(level) as lowering:
                    try:
                        return run()
                    except RuntimeError as error:
                        if lowering.failure is not None and str(lowering.failure) not in str(error):
                            raise lowering.failure from error
                        raise
            with without_transforms() as stack, _Lowering(level, stack):  # nor must torch.func's transforms
                return run()
        finally:
            level.modes, level.dispatch_keys = before
