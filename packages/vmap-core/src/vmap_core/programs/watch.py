"""The two modes that watch a run for a `Recorder`, and calls that are not recorded as they come."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ..dispatch.lowering import LoweredTensor
from ..errors import CaptureError
from ..levels.head import Sentinel
from ..levels.ownership import own_samples
from ..levels.recording import RecordingMode
from ..levels.tensor import BatchedTensor
from ..torch_compat.dispatcher import TorchDispatchMode
from ..torch_compat.mode_stack import DisableTorchFunction, pop_mode, push_mode, skip_one_hop
from ..torch_compat.tensors import TensorBase, make_dual, typed_storage, unpack_dual
from .recorder import Recorder
from .spelling import name_of
from .values import tensors_of


class Calls(RecordingMode):
    """Sees what rules call, with all levels off."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call, and record it."""
        recorder, kwargs = self.recorder, kwargs or {}
        if recorder.failure is not None or recorder.paused:
            return func(*args, **kwargs)
        if any(type(t) is LoweredTensor for t in tensors_of((args, kwargs))):
            push_mode(self)  # what it answers is recorded
            try:
                with DisableTorchFunction():
                    return func(*args, **kwargs)
            finally:
                pop_mode()
        handle = _HANDLERS.get(func)
        if handle is not None:
            return handle(recorder, func, args, kwargs)
        if type(func) is not FunctionType or func in _OVER_NATIVE:
            return recorder.run(func, args, kwargs)
        push_mode(self)  # a function in Python: what it calls is recorded
        try:
            return skip_one_hop(func, (Tensor,), args, kwargs)
        finally:
            pop_mode()


# Their classes answer: a lowered tensor by a rule, which makes physical operations; what C++ finds in a batched one by itself.
_ANSWERING = frozenset((LoweredTensor, Sentinel, BatchedTensor))


class Kernels(TorchDispatchMode):
    """Sees the operations of ATen."""

    def __init__(self, recorder: Recorder) -> None:
        """Watch for a recorder."""
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and record it if no recorded call has made it."""
        if not _ANSWERING.isdisjoint(types):
            return NotImplemented
        recorder, kwargs = self.recorder, kwargs or {}
        with DisableTorchFunction():  # the other mode has nothing to see in it
            if recorder.failure is not None:
                return func(*args, **kwargs)
            return recorder.kernel(func, args, kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler for us."""
        return False


def apply_function(recorder: Recorder, native: Any, cls: Any, args: Any, kwargs: Any) -> Any:
    """Call an autograd.Function on physical tensors.

    Its forward runs without grad mode. Where the graph leads outside, replayed operations would lose it, so the call
    is recorded as such; else what its forward and backward do is recorded.
    """
    mode = pop_mode()
    try:
        if type(mode) is not Calls:
            raise recorder.refusal(f"an autograd.Function runs under the mode {type(mode).__name__}")
        if _leads_outside(recorder, args, kwargs):
            if getattr(cls, "holds_a_call", False):
                raise recorder.refusal(
                    f"gradients from outside go through the autograd.Function {cls.__name__} on batched tensors"
                )
            return recorder.run(_applied(recorder, cls), args, kwargs, expand=False)
    except CaptureError as error:
        recorder.fail(error)
    finally:
        push_mode(mode)
    return native(cls, *args, **kwargs)


def _leads_outside(recorder: Recorder, args: Any, kwargs: Any) -> bool:
    return torch.is_grad_enabled() and any(
        t.requires_grad and recorder.node_of(t).meta["tracked"] for t in tensors_of((args, kwargs))
    )


def _applied(recorder: Recorder, cls: Any) -> Callable[..., Any]:
    """Return the ``apply`` of a Function as a plain function, which fx can name."""
    made = recorder.applied.get(cls)
    if made is None:

        def made(*args: Any, **kwargs: Any) -> Any:
            return cls.apply(*args, **kwargs)

        made.__name__ = made.__qualname__ = f"{cls.__name__}_apply"
        recorder.applied[cls] = made
    return made


# Calls that are not recorded as they come.


def _natively(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _show(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    recorder.paused = True
    try:
        return func(*args, **kwargs)
    finally:
        recorder.paused = False


def _refuse(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    recorder.fail(recorder.refusal(f"{name_of(func)} gives the values of a tensor to Python"))
    return func(*args, **kwargs)


def _on_own(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """What autograd keeps in a tensor beside its value: for tensors of the function's own only."""
    if recorder.is_outside(args[0]):
        recorder.fail(recorder.refusal(f"{name_of(func)} of a tensor from outside the function"))
    return func(*args, **kwargs)


def _require_grad(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """A leaf of the function's own serves derivatives inside, whose operations are recorded themselves."""
    before = args[0].requires_grad
    out = func(*args, **kwargs)
    if args[0].requires_grad != before and recorder.is_outside(args[0]):
        recorder.fail(recorder.refusal("requires_grad of a tensor from outside the function is set"))
    return out


def _own_samples(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return recorder.run(Tensor.view_as, (args[0], args[0]), {})


def _hook(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    if recorder.is_outside(args[0]) or recorder.node_of(args[0]).meta["tracked"]:
        recorder.fail(recorder.refusal("a hook is put on a graph that leads outside the function"))
    return func(*args, **kwargs)


def _set_data(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    x, new = args
    if recorder.is_outside(x):
        recorder.fail(recorder.refusal("the data of a tensor from outside the function is set"))
    out = func(*args, **kwargs)
    if recorder.failure is None:
        recorder.same_value(x, new)
    return out


def _dual(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """A dual tensor has its primal's value; a tangent that PyTorch must copy is, by operations that are recorded."""
    out = func(*args, **kwargs)
    recorder.same_value(out[0] if isinstance(out, tuple) else out, args[0])
    return out


_any: Any = Tensor

# Methods in Python over one of the same name in C++, which comes here under the name of the first.
_OVER_NATIVE = {f for name, f in vars(Tensor).items() if type(f) is FunctionType and hasattr(TensorBase, name)}
_HANDLERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((_any.__repr__, _any.__format__, _any.__str__, _any.__hash__), _show),
    **dict.fromkeys(
        (
            _any.numpy, _any.tolist, _any.__array__, _any.data_ptr, _any.storage, _any.untyped_storage,
            typed_storage, _any.__dlpack__, _any.__deepcopy__, _any.__reduce_ex__,
        ),
        _refuse,
    ),
    **dict.fromkeys((_any.grad.__get__, _any.grad.__set__, _any.grad.__delete__), _on_own),
    **dict.fromkeys((_any.requires_grad_, _any.requires_grad.__set__), _require_grad),
    **dict.fromkeys((_any.register_hook, _any.register_post_accumulate_grad_hook), _hook),
    **dict.fromkeys((_any.retain_grad, _any.grad_fn.__get__, _any.is_leaf.__get__), _natively),
    _any.data.__set__: _set_data,
    own_samples: _own_samples,
    make_dual: _dual,
    unpack_dual: _dual,
}  # fmt: skip
