"""Guards at the entry points of PyTorch that take tensors without asking ``__torch_function__``.

A BatchedTensor passes ``isinstance(x, torch.Tensor)``, and C++ that trusts this would read memory that is not there,
or lose a gradient. So each such entry point that a mapped function can reach is replaced by a thin wrapper: with a
BatchedTensor among the arguments it runs the rule whose key is the entry point itself (``torch.autograd.backward``,
``torch.autograd.Function.apply``), or raises UnsupportedError; without one it does what it always did.

Not guarded are the constructors ``torch.Tensor(x)`` and ``Tensor._make_subclass``: torch.compile knows them by
identity, and would stop tracing tensor subclasses.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.eager_transforms
from torch._functorch import apis

from ..dispatch.lowering import run_lowered
from ..dispatch.refusals import AUTOGRAD, unsupported
from ..errors import EscapedTensorError
from ..levels import level as _level
from ..levels.args import holds_batched, unwrap, unwrap_kwargs, wrap
from ..levels.entry import dispatch
from ..levels.level import Level
from ..levels.recording import current
from ..levels.stack import below, current_levels
from ..programs.watch import apply_function
from ..torch_compat.mode_stack import pop_mode, push_mode, stack_size
from ..transform.vmap import vmap
from . import autocast_hook
from .dynamo import run_eagerly_inside

_TRANSFORMS = "Transforms inside a mapped function come with vmap-autograd: pip install vmap-autograd"
_RETURN = "Instead: return the tensor from the mapped function and do this outside it"


def _has_rule(key: Any) -> bool:
    levels = current_levels()
    return bool(levels) and levels[-1].table.rule(key) is not None


def _guard(holders: list[Any], name: str, title: str, advice: str, instead: Any = None) -> None:
    """Replace a function, wherever PyTorch keeps it, by one that looks at its arguments.

    Args:
        holders: the modules that have it.
        name: its name there.
        title: its name in the error.
        advice: what to do instead.
        instead: a function in Python that does the same, also with BatchedTensors.
    """
    native = getattr(holders[0], name, None)
    if native is None or getattr(native, "_vmap_native", None) is not None:
        return

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if holds_batched(args) or (kwargs and holds_batched(kwargs.values())):
            if _has_rule(guarded):
                return dispatch(guarded, args, kwargs)
            if instead is not None:
                return instead(*args, **kwargs)
            raise unsupported(title, advice)
        return native(*args, **kwargs)

    functools.update_wrapper(guarded, native)
    guarded._vmap_native = native  # type: ignore[attr-defined]
    for holder in holders:
        if getattr(holder, name, None) is native:
            setattr(holder, name, guarded)


def _guard_apply() -> None:
    """``autograd.Function.apply`` runs ``forward`` without grad mode: unnoticed, it would lose the gradient."""
    function = torch.autograd.Function
    native = function.__dict__["apply"]
    native = getattr(native, "__func__", native)  # since 2.14 it is C++'s, which takes the class itself
    if hasattr(native, "_vmap_native"):
        return

    @functools.wraps(native)
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if not stack_size():
            return native(cls, *args, **kwargs)
        levels = current_levels()
        if not levels:
            recorder = current()
            if recorder is not None:
                return apply_function(recorder, native, cls, args, kwargs)
            return native(cls, *args, **kwargs)
        with below(levels[-1]) as level:
            if level.table.rule(function.apply) is not None:
                return _level.call(level, function.apply, (cls, *args), kwargs)
            return _shared_apply(apply, level, cls, args, kwargs)

    apply._vmap_native = native  # type: ignore[attr-defined]
    function.apply = classmethod(apply)  # type: ignore[assignment]


def _shared_apply(apply: Any, level: Level, cls: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run a Function on tensors that all samples share, one level further out."""
    values, _, batched = unwrap(level, args)
    kwargs, _, kw_batched = unwrap_kwargs(level, kwargs)
    error = unsupported(f"the autograd.Function {cls.__name__}", AUTOGRAD)
    if batched or kw_batched:
        raise error
    try:
        out = apply(cls, *values, **kwargs)
    except EscapedTensorError:  # forward uses a captured BatchedTensor
        raise error from None
    same = {id(v): a for v, a in zip(values, args, strict=True)}
    if isinstance(out, tuple):
        return tuple(same[id(o)] if id(o) in same else wrap(level, o, None) for o in out)
    return same[id(out)] if id(out) in same else wrap(level, out, None)


def _nest_vmap() -> None:
    """``torch.vmap`` inside a mapped function is ours: C++ cannot wrap our tensors."""
    native = apis.vmap_impl
    if hasattr(native, "_vmap_native"):
        return

    @functools.wraps(native)
    def vmap_impl(
        func: Any, in_dims: Any, out_dims: Any, randomness: Any, chunk_size: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if not current_levels():
            return native(func, in_dims, out_dims, randomness, chunk_size, *args, **kwargs)
        return vmap(func, in_dims, out_dims, randomness, chunk_size=chunk_size)(*args, **kwargs)

    vmap_impl._vmap_native = native  # type: ignore[attr-defined]
    apis.vmap_impl = vmap_impl


def _guard_save_for_backward() -> None:
    context = torch.autograd.function.FunctionCtx
    native: Callable[..., Any] = context.save_for_backward
    if hasattr(native, "_vmap_native"):
        return

    @functools.wraps(native)
    def save_for_backward(self: Any, *tensors: Any) -> None:
        if holds_batched(tensors):
            raise unsupported("ctx.save_for_backward", AUTOGRAD)
        native(self, *tensors)

    save_for_backward._vmap_native = native  # type: ignore[attr-defined]
    context.save_for_backward = save_for_backward  # type: ignore[method-assign]


def _hand_over_faster() -> None:
    """Functions of PyTorch in Python hand calls over in Python: 3 microseconds, of which a level needs a fifth."""
    native: Any = torch.overrides.handle_torch_function
    if hasattr(native, "_vmap_native"):
        return

    @functools.wraps(native)
    def handle_torch_function(public_api: Any, relevant_args: Any, *args: Any, **kwargs: Any) -> Any:
        if stack_size():
            mode = pop_mode()
            try:
                if type(mode) is Level:
                    return mode.__torch_function__(public_api, (), args, kwargs)
            finally:
                push_mode(mode)
        return native(public_api, relevant_args, *args, **kwargs)

    handle_torch_function._vmap_native = native  # type: ignore[attr-defined]
    for holder in (torch.overrides, torch.nn.functional, torch.functional, torch._tensor, torch.nn.init):
        setattr(holder, "handle_torch_function", handle_torch_function)  # noqa: B010


def _by_device_and_dtype(lists: Any, with_indices: bool = False) -> dict[Any, Any]:
    """Sort lists of an optimizer by the device and dtype of the tensors in the first; empty ones stay empty."""
    groups: dict[Any, Any] = {}
    for k, x in enumerate(lists[0]):
        columns, indices = groups.setdefault((x.device, x.dtype), ([[] for _ in lists], []))
        for column, values in zip(columns, lists, strict=True):
            column += [values[k]] if values else []
        indices += [k] if with_indices else []
    return groups


def _guard_torchscript() -> None:
    """TorchScript's interpreter takes tensors as C++ knows them: it runs on lowered ones, its operations meet the rules."""
    for kind in (torch._C.ScriptFunction, torch._C.ScriptMethod):
        native = kind.__call__
        if hasattr(native, "_vmap_native"):
            continue

        def call(self: Any, *args: Any, native: Any = native, **kwargs: Any) -> Any:
            if not (holds_batched(args) or holds_batched(kwargs.values())):
                return native(self, *args, **kwargs)
            levels = current_levels()
            if not levels:
                raise unsupported("a TorchScript function", _RETURN)
            with below(levels[-1]) as level:
                return run_lowered(level, functools.partial(native, self), args, kwargs, mutates=True)

        call._vmap_native = native  # type: ignore[attr-defined]
        kind.__call__ = call  # type: ignore[method-assign]


def install() -> None:
    """Put the guards in place; again is harmless."""
    run_eagerly_inside()
    autocast_hook.install()
    _hand_over_faster()
    _guard_apply()
    _guard_save_for_backward()
    _guard_torchscript()
    autograd = torch.autograd
    _guard([autograd], "backward", "torch.autograd.backward", AUTOGRAD)
    _guard([autograd, autograd.graph], "_engine_run_backward", "torch.autograd", AUTOGRAD)
    _nest_vmap()
    try:  # since 2.9
        _guard(
            [importlib.import_module("torch._functorch.predispatch")],
            "_add_batch_dim_impl",
            "torch.func.vmap",
            _TRANSFORMS,
        )
    except ImportError:
        users = [importlib.import_module(f"torch._functorch.{name}") for name in ("vmap", "autograd_function")]
        _guard(users, "_add_batch_dim", "torch.func.vmap", _TRANSFORMS)
    for name in ("_wrap_for_grad", "_wrap_functional_tensor"):
        _guard([torch._functorch.eager_transforms], name, "a transform of torch.func", _TRANSFORMS)
    _guard([getattr(torch._C, "_nested", None)], "nested_tensor", "torch.nested.nested_tensor", _RETURN)
    for name in ("_is_alias_of", "_overlaps", "_storage_address", "_get_tensor_metadata", "_dispatch_keys"):
        _guard([torch._C], name, f"torch._C.{name}", _RETURN)
    group = "_group_tensors_by_device_and_dtype"
    _guard([torch._C], group, f"torch._C.{group}", _RETURN, _by_device_and_dtype)
    _guard([torch.utils.dlpack], "to_dlpack", "to_dlpack", _RETURN)
    for holder in (torch, torch.random):
        _guard([holder], "set_rng_state", "torch.set_rng_state", _RETURN)
