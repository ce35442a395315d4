"""`torch.autograd.Function` inside a mapped function.

A class with a ``vmap`` staticmethod of its own batches itself. Every other one runs as it is written, on
BatchedTensors, inside a physical Function that autograd records: its forward runs the class's forward at the level,
and its backward the class's backward, whenever that comes. So the custom gradient is what is used, once per batch.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import CheckpointFunction

from vmap_core.extend import Level, RulePack, run_rule, unwrap, wrap

from ._function_call import FunctionCall
from .by_sample import by_sample_if_need_be
from .checkpoint import with_modules_as_now

pack = RulePack("autograd.function")


@pack.logical(Function.apply)
def apply(info: Level, cls: Any, *args: Any, **kwargs: Any) -> Any:
    """Run ``cls.apply(*args)``: by its own ``vmap``, or as it is written."""
    if kwargs:
        raise TypeError(f"{cls.__name__}.apply() takes no keyword arguments")
    if cls.vmap is not Function.vmap:
        if cls.generate_vmap_rule:
            raise RuntimeError(
                f"You tried to vmap over {cls.__name__}, but it has both generate_vmap_rule=True and an overriden vmap "
                f"staticmethod. Please set generate_vmap_rule=False or delete the overriden vmap staticmethod to avoid "
                f"ambiguity."
            )
        values, dims, batched = unwrap(info, args)
        if batched:
            return wrap(info, *run_rule(cls.vmap, f"{cls.__name__}.vmap", info, tuple(dims), values, {}))

    if getattr(cls, "backward_is_linear", False):  # one of the core's
        values, _, batched = unwrap(info, args)
        if not batched:
            return wrap(info, cls.apply(*values), None)
    if cls is CheckpointFunction:
        with info.pushed():
            args = (with_modules_as_now(args[0]), *args[1:])

    def mapped() -> Any:
        call = FunctionCall(info, cls, args)
        return call.outputs_of(_physical(cls).apply(call, *call.values))

    return by_sample_if_need_be(info, f"the autograd.Function {cls.__name__}", mapped, cls.apply, args, args)


class _Physical(Function):
    """What autograd records for one call: everything is in the `FunctionCall`, its first argument."""

    holds_a_call = True  # a program cannot make the call again

    @staticmethod
    def forward(call: FunctionCall, *values: Any) -> tuple[Any, ...]:
        """Run the class's forward."""
        return call.forward(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Save what the class's forward has asked to save."""
        call, *values = inputs
        ctx.call = call
        call.set_up(ctx, values, output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Run the class's backward."""
        return (None, *ctx.call.backward(ctx, grads))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Any, ...]:
        """Run the class's jvp."""
        result: tuple[Any, ...] = ctx.call.jvp(ctx, tangents)
        return result


_classes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _physical(cls: Any) -> Any:
    """Return the physical Function of a class; it has the class's name, which graphs and hooks show."""
    made = _classes.get(cls)
    if made is None:
        methods = {}
        if is_once_differentiable(cls.backward):
            methods["backward"] = staticmethod(once_differentiable(_Physical.backward))
        made = _classes[cls] = type(cls)(cls.__name__, (_Physical,), methods)
        backward = made._backward_cls  # what `tensor.grad_fn` gives; its hooks see what the mapped function sees
        for name in ("register_hook", "register_prehook"):
            setattr(backward, name, _node_hook(getattr(backward, name), before=name == "register_prehook"))
    return made


def is_once_differentiable(function: Any) -> bool:
    """Tell whether a backward carries the decorator ``once_differentiable``."""
    return getattr(function, "__code__", None) is once_differentiable(_physical).__code__  # type: ignore[attr-defined]


def _node_hook(register: Any, before: bool) -> Any:
    """Make a node's ``register_hook`` that passes a hook the gradients of a sample."""

    @functools.wraps(register)
    def register_logical(node: Any, hook: Any) -> Any:
        return register(node, node.call.node_hook(hook, before))

    return register_logical
