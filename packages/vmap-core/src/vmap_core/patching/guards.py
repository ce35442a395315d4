"""Patches at the entry points of PyTorch that take tensors without asking ``__torch_function__``.

C++ that is given a batched tensor finds one without data (see `levels.head`): it raises, loses a gradient, or cannot even
pass an error on. Where there is something right to do, or to say, the entry point is replaced by a thin wrapper: with a
BatchedTensor among the arguments it does that; without one it does what it always did.

Not replaced are the constructors ``torch.Tensor(x)`` and ``Tensor._make_subclass``: torch.compile knows them by
identity, and would stop tracing tensor subclasses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

from ..dispatch.lowering import LoweredTensor, run_at_their_level, run_lowered
from ..dispatch.refusals import needs_vmap_autograd, unsupported
from ..errors import EscapedTensorError
from ..levels.args import holds_batched, unwrap, unwrap_kwargs, wrap
from ..levels.entry import dispatch, survivors
from ..levels.graph_node import GraphNode
from ..levels.head import Sentinel
from ..levels.level import Level, call
from ..levels.read import alive, escaped
from ..levels.recording import current
from ..levels.stack import below, current_levels
from ..levels.tensor import BatchedTensor
from ..programs.watch import apply_function
from ..torch_compat.mode_stack import pop_mode, push_mode, stack_size
from ..torch_compat.one_graph import in_bodies
from ..torch_compat.versions import ABOUT_ALIGNMENT, ADD_BATCH_DIM, APPLY_IS_PYTHON
from ..transform.vmap import vmap
from .registry import Patch, patch

_RETURN = "Instead: return the tensor from the mapped function and do this outside it"


@patch(
    "torch.autograd.Function.apply",
    "It runs forward() without grad mode: on batched tensors, which C++ does not know, the gradient would be lost.",
    inside=APPLY_IS_PYTHON,  # else a bound method that somebody has kept could not be told: it stays in place
)
def apply_function_at_level(native: Any) -> Any:
    """Apply an autograd.Function by the rule for it; where there is none, to what all samples share."""

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if LoweredTensor in map(type, args):  # from code that a lowered call runs: a hook, another Function's backward
            return run_at_their_level(torch.autograd.Function.apply, (cls, *args), kwargs)
        if not stack_size():
            return native(cls, *args, **kwargs)
        levels = current_levels()
        if not levels:
            recorder = current()
            if recorder is not None:
                return apply_function(recorder, native, cls, args, kwargs)
            return native(cls, *args, **kwargs)
        with below(levels[-1]) as level:
            key = torch.autograd.Function.apply
            if level.table.rule(key) is not None:
                return call(level, key, (cls, *args), kwargs)
            return _shared_apply(apply, level, cls, args, kwargs)

    return apply


def _shared_apply(apply: Any, level: Level, cls: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run a Function on tensors that all samples share, one level further out."""
    values, _, batched = unwrap(level, args)
    kwargs, _, kw_batched = unwrap_kwargs(level, kwargs)
    error = needs_vmap_autograd(f"the autograd.Function {cls.__name__}")
    if batched or kw_batched:
        raise error
    try:
        out = apply(cls, *values, **kwargs)
    except EscapedTensorError:  # forward has captured a batched tensor
        raise error from None
    results = out if isinstance(out, tuple) else (out,)
    if any(isinstance(saved, Sentinel | BatchedTensor) for o in results for saved in _saved(o)):
        raise error
    same = {id(v): a for v, a in zip(values, args, strict=True)}
    if isinstance(out, tuple):
        return tuple(same[id(o)] if id(o) in same else wrap(level, o, None) for o in out)
    return same[id(out)] if id(out) in same else wrap(level, out, None)


def _saved(out: Any) -> Any:
    """Return what the node that made an output saved for its backward pass."""
    return getattr(getattr(out, "grad_fn", None), "saved_tensors", ())


@patch(
    "torch.autograd.graph._engine_run_backward",
    "The engine is C++: backward() and grad() on batched tensors need a rule.",
    inside=True,
)
def run_backward_at_level(native: Any) -> Any:
    """Run backward() and grad() by their rules, where PyTorch has not asked for them: before 2.13, and for a GradientEdge."""

    def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not holds_batched((outputs, *args)) and not any(
            map(_is_of_samples, (*outputs, *(args[3] if len(args) > 3 else ())))
        ):
            return native(outputs, *args, **kwargs)
        levels = current_levels()
        if levels and levels[-1].table.rule(torch.autograd.backward) is not None:
            vectors, retain_graph, create_graph, inputs, *allow_unused = args
            options = {"retain_graph": retain_graph, "create_graph": create_graph}
            if kwargs.get("accumulate_grad"):
                return dispatch(torch.autograd.backward, (outputs, vectors), {**options, "inputs": inputs or None})
            options["allow_unused"] = allow_unused[0]
            return dispatch(torch.autograd.grad, (outputs, inputs, vectors), options)
        raise needs_vmap_autograd("torch.autograd")

    return run_backward


def _is_of_samples(x: Any) -> bool:
    """Tell whether something is a GradientEdge of a batched tensor."""
    return isinstance(x, GradientEdge) and type(x.node) is GraphNode


@patch(
    "torch.nn.Parameter.__new__",
    "It makes a Parameter of a Tensor as it is, and of anything else by a flag: what is left of a mapped function is a Tensor.",
)
def make_parameter_of_value(native: Any) -> Any:
    """Make a Parameter of the value of a tensor that all samples shared, once its vmap has ended."""

    def __new__(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        return native(cls, alive(data), requires_grad)

    return __new__


@patch(
    "torch.overrides.handle_torch_function",
    "For speed: functions of PyTorch in Python hand a call over with it, in 3 microseconds, of which a level needs a fifth.",
    holders=(
        "torch.nn.functional",
        "torch.functional",
        "torch._tensor",
        "torch.nn.init",
    ),  # other code costs each call more
)
def hand_over_faster(native: Any) -> Any:
    """Hand a call to the innermost level in Python."""

    def handle_torch_function(public_api: Any, relevant_args: Any, *args: Any, **kwargs: Any) -> Any:
        if stack_size():
            mode = pop_mode()
            try:
                if type(mode) is Level:
                    return mode.__torch_function__(public_api, (), args, kwargs)
            finally:
                push_mode(mode)
        return native(public_api, relevant_args, *args, **kwargs)

    return handle_torch_function


@patch(
    "torch.set_autocast_enabled",
    "A level has plans of its own for autocast, and has to know when that changes.",
    inside=True,
)
def tell_levels_of_autocast(native: Any) -> Any:
    """Set autocast, and let the levels of this thread look at it."""

    def set_autocast_enabled(*args: Any, **kwargs: Any) -> None:
        native(*args, **kwargs)
        for level in current_levels():
            level.look_at_autocast()

    return set_autocast_enabled


@patch(
    "torch._dynamo.eval_frame._callback_from_stance",
    "Compiled functions run as they are inside mapped functions, where the compiler knows none of the tensors.",
    inside=True,
    waits_for="torch._dynamo.eval_frame",
)
def run_eagerly(native: Any) -> Any:
    """Return no compiler, inside mapped functions; asked on every call of a compiled function."""
    module = native.__globals__
    count_frames = module.get("set_fullgraph_compiled_frame_count", lambda count: -1)

    def callback_from_stance(given: Any) -> Any:
        if not current_levels():
            return native(given)
        if count_frames(-1) != -1:  # fullgraph=True counts what it compiles, and objects to nothing
            count_frames(1)
        return None

    return callback_from_stance


@patch("torch._functorch.apis.vmap_impl", "torch.vmap inside a mapped function is ours: C++ cannot wrap our tensors.")
def nest_vmap(native: Any) -> Any:
    """Map by our vmap, inside mapped functions."""

    def vmap_impl(
        func: Any, in_dims: Any, out_dims: Any, randomness: Any, chunk_size: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if not current_levels():
            return native(func, in_dims, out_dims, randomness, chunk_size, *args, **kwargs)
        return ours(func, in_dims, out_dims, randomness, chunk_size, *args, **kwargs)

    def ours(
        func: Any, in_dims: Any, out_dims: Any, randomness: Any, chunk_size: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return vmap(func, in_dims, out_dims, randomness, chunk_size=chunk_size)(*args, **kwargs)

    vmap_impl._torchdynamo_inline = in_bodies(ours, native)  # type: ignore[attr-defined]
    return vmap_impl


@patch(
    "torch.utils._foreach_utils._group_tensors_by_device_and_dtype",
    "Optimizers and clip_grad_norm_ sort tensors with it, in C++ that finds no device in a batched one.",
    holders=("torch.nn.utils.clip_grad", "torch.optim.optimizer", "torch.optim.swa_utils"),
)
def group_batched_tensors(native: Any) -> Any:
    """Sort lists of an optimizer by the device and dtype of the tensors in the first; empty ones stay empty."""

    def group(lists: Any, with_indices: bool = False) -> Any:
        if not stack_size() or not holds_batched(lists):
            return native(lists, with_indices)
        groups: dict[Any, Any] = {}
        for k, x in enumerate(lists[0]):
            columns, indices = groups.setdefault((x.device, x.dtype), ([[] for _ in lists], []))
            for column, values in zip(columns, lists, strict=True):
                column += [values[k]] if values else []
            indices += [k] if with_indices else []
        return groups

    return group


def _run_torchscript(native: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not stack_size() or not (holds_batched(args) or holds_batched(kwargs.values())):
            return native(self, *args, **kwargs)
        levels = current_levels()
        if not levels:
            raise unsupported("a TorchScript function", _RETURN)
        with below(levels[-1]) as level:
            return run_lowered(level, functools.partial(native, self), args, kwargs, mutates=True)

    return call


_LOWERED = (
    "TorchScript's interpreter takes tensors as C++ knows them: it runs on lowered ones, its operations meet the rules."
)
for _kind in ("ScriptFunction", "ScriptMethod"):
    Patch(f"torch._C.{_kind}.__call__", _run_torchscript, _LOWERED)


def _refusing(title: str, advice: str | None) -> Callable[[Any], Any]:
    def make(native: Any) -> Any:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if holds_batched(args) or (kwargs and holds_batched(kwargs.values())):
                levels = current_levels()
                if levels and levels[-1].table.rule(native) is not None:
                    return dispatch(native, args, kwargs)
                if levels:
                    raise needs_vmap_autograd(title, "Transforms") if advice is None else unsupported(title, advice)
                args, kwargs, batched = survivors(args, kwargs)
                if batched is not None:
                    raise escaped(batched)
            return native(*args, **kwargs)

        return guarded

    return make


def _refuse_to_swap(native: Any) -> Any:
    """Refuse what exchanges the tensors behind two Python objects, also after a vmap: ours have none of their own."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if holds_batched(args) or holds_batched(kwargs.values()):
            raise unsupported("torch.utils.swap_tensors", "Instead: exchange the names, or copy_() the values")
        return native(*args, **kwargs)

    return guarded


for _swap in ("torch._C._swap_tensor_impl", "torch.utils.swap_tensors"):
    Patch(_swap, _refuse_to_swap, "C++ would exchange heads that are not theirs alone, and free one twice.")


_READS = "C++ would find no data in it; here the error says what to do"
_ENDS = "C++ would end the process: it cannot pass on that there is no data"
_FUNC = "torch.func's transforms wrap tensors in C++, which does not know batched ones"
_REFUSED: tuple[tuple[Any, ...], ...] = (
    ("torch._C._nested.nested_tensor", "torch.nested.nested_tensor", _RETURN, _READS),
    ("torch._C._is_alias_of", "torch._C._is_alias_of", _RETURN, _READS),
    ("torch._C._overlaps", "torch._C._overlaps", _RETURN, _READS),
    ("torch._C._storage_address", "torch._C._storage_address", _RETURN, _READS),
    ("torch._C.ScriptObject.setattr", "an attribute of a scripted module", _RETURN, _READS),
    ("torch.utils.dlpack.to_dlpack", "to_dlpack", _RETURN, _READS),
    ("torch.random.set_rng_state", "torch.set_rng_state", _RETURN, _READS, "torch"),
    *((name, name, _RETURN, _ENDS) for name in ABOUT_ALIGNMENT),
    (ADD_BATCH_DIM, "torch.func.vmap", None, _FUNC),
    ("torch._functorch.eager_transforms._wrap_for_grad", "a transform of torch.func", None, _FUNC),
    ("torch._functorch.eager_transforms._wrap_functional_tensor", "a transform of torch.func", None, _FUNC),
)
for _target, _title, _advice, _why, *_holders in _REFUSED:
    Patch(_target, _refusing(_title, _advice), f"{_why}.", holders=tuple(_holders))
