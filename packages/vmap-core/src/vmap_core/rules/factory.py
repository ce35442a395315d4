"""Factories: tensors of a given shape, like another tensor, or from Python data with batched numbers in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch.planner import call_inherent
from ..levels.args import any_batched
from ..levels.containers import leaves
from ..rulekit.rule import RuleFunction, RulePack
from ..torch_compat.operators import named_aten as aten
from .cast import as_number
from .random import one_sample

pack = RulePack("core.factory")


def _like(op: Any) -> RuleFunction:
    """Make the rule of a factory that takes shape, strides, dtype and device from a tensor."""

    def like(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        """(*) -> (*), new, the same for all samples until a write."""
        if x.layout is not torch.strided:
            return op(x, *args, **kwargs), in_dims[0]
        return op(one_sample(x, in_dims[0]), *args, **kwargs), None

    return like


pack.family(_like, aten.empty_like.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)


def _new(op: Any) -> RuleFunction:
    """Make the rule of a factory method that takes dtype and device from a tensor."""

    def new(info: Any, in_dims: Any, x: Any, size: Any, *args: Any, **kwargs: Any) -> Any:
        """(*) -> (*size), new, the same for all samples until a write."""
        return op(x, size, *args, **kwargs), None

    return new


pack.family(_new, aten.new_empty.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)


@pack.rule(aten.new_empty_strided.default)
def new_empty_strided(info, in_dims, x, size, stride, **kwargs):
    """(*) -> (*size), new, each sample with the given strides."""
    reach = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else 0
    return x.new_empty_strided((info.batch_size, *size), (max(reach, 1), *stride), **kwargs), 0


def _filled(name: str) -> RuleFunction:
    """Make the rule of a function that fills a shape with one number, which may be batched."""
    func, at = (Tensor.new_full, 2) if name == "new_full" else (getattr(torch, name), 1)

    def full(info: Any, *args: Any, **kwargs: Any) -> Any:
        value = kwargs["fill_value"] if "fill_value" in kwargs else args[at] if len(args) > at else None
        if not isinstance(value, Tensor):
            return call_inherent(info, func, args, kwargs)
        with info.pushed():
            _number(name, "fill_value", value)
            if name == "full":
                dtype = kwargs.get("dtype") or _python_dtype(value.dtype)
                blank = torch.empty(args[0] if args else kwargs["size"], **{"dtype": dtype, **_only_options(kwargs)})
            elif name == "full_like":
                blank = torch.empty_like(args[0], **_only_options(kwargs))
            else:
                blank = args[0].new_empty(args[1] if len(args) > 1 else kwargs["size"], **_only_options(kwargs))
            blank.copy_(as_number(value, blank.dtype))
            return blank.requires_grad_() if kwargs.get("requires_grad") else blank

    full.__name__ = name
    return full


for _key, _name in ((torch.full, "full"), (torch.full_like, "full_like"), (Tensor.new_full, "new_full")):
    pack.logical(_key)(_filled(_name))


def _only_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("dtype", "device", "layout", "pin_memory", "memory_format")
    return {k: kwargs[k] for k in names if kwargs.get(k) is not None}


def _number(function: str, argument: str, value: Any) -> None:
    """Check what PyTorch asks of a tensor that stands for a number.

    Raises:
        TypeError: it is no scalar, or requires grad, which a number would lose.
    """
    if value.ndim or value.requires_grad:
        what = "requires grad" if value.requires_grad else f"has shape {tuple(value.shape)}"
        raise TypeError(f"{function}(): argument '{argument}' must be Number, not Tensor (this one {what})")


def _python_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype PyTorch gives to the Python number that a scalar of ``dtype`` reads as."""
    if dtype.is_complex:
        return torch.complex128 if torch.get_default_dtype() == torch.float64 else torch.complex64
    if dtype.is_floating_point:
        return torch.get_default_dtype()
    return dtype if dtype == torch.bool else torch.int64


@pack.logical(torch.scalar_tensor)
def scalar_tensor(info: Any, s: Any, **kwargs: Any) -> Any:
    """A number -> ()."""
    if not isinstance(s, Tensor):
        return call_inherent(info, torch.scalar_tensor, (s,), kwargs)
    with info.pushed():
        _number("scalar_tensor", "s", s)
        out = torch.empty((), **_only_options(kwargs)).copy_(s)
        return out.requires_grad_() if kwargs.get("requires_grad") else out


# Python data


@pack.logical(torch.tensor)
def tensor(info: Any, data: Any, **kwargs: Any) -> Any:
    """Nested lists of numbers, which may be batched, -> a new tensor. A tensor is copied, without its history."""
    if isinstance(data, Tensor):
        with info.pushed():
            out = data.detach().clone()
            out = out.to(**_options(kwargs)) if _options(kwargs) else out
            return out.requires_grad_() if kwargs.get("requires_grad") else out
    if not any_batched(info, (data,), {}):
        return call_inherent(info, torch.tensor, (data,), kwargs)
    with info.pushed():
        out = _from_nested(data, kwargs)
        return out.requires_grad_() if kwargs.get("requires_grad") else out


@pack.logical(Tensor.new_tensor)
def new_tensor(info: Any, x: Any, data: Any, **kwargs: Any) -> Any:
    """Nested lists -> a new tensor with the dtype and device of ``x``."""
    defaults = {"device": x.device, "dtype": x.dtype}
    return tensor(info, data, **{**defaults, **{k: v for k, v in kwargs.items() if v is not None}})


@pack.logical(torch.as_tensor)
def as_tensor(info: Any, data: Any, dtype: Any = None, device: Any = None) -> Any:
    """Nested lists -> a new tensor; a tensor, as it is or moved."""
    options = {"dtype": dtype, "device": device}
    if not isinstance(data, Tensor):
        if any_batched(info, (data,), {}):
            return tensor(info, data, **options)
        return call_inherent(info, torch.as_tensor, (data,), options)
    with info.pushed():
        return data.to(**_options(options)) if _options(options) else data


@pack.logical(torch.asarray)
def asarray(info: Any, obj: Any, **kwargs: Any) -> Any:
    """As `as_tensor`; without ``requires_grad`` a tensor loses its history."""
    if not isinstance(obj, Tensor):
        if any_batched(info, (obj,), {}):
            return tensor(info, obj, **{k: v for k, v in kwargs.items() if k != "copy"})
        return call_inherent(info, torch.asarray, (obj,), kwargs)
    with info.pushed():
        options = _options(kwargs)
        moved = obj.to(**options) if options else obj
        if moved is not obj and kwargs.get("copy") is False:
            raise ValueError("can't alias tensor into another dtype or device with copy=False")
        if moved is obj and kwargs.get("copy"):
            moved = obj.clone()
        if kwargs.get("requires_grad"):
            return moved if moved.requires_grad else moved.requires_grad_()
        return moved.detach() if moved.requires_grad else moved


def _options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: kwargs[k] for k in ("dtype", "device") if kwargs.get(k) is not None}


def _shape(data: Any) -> tuple[int, ...]:
    if not isinstance(data, list | tuple):
        return ()  # also a tensor, of one element
    inner = {_shape(item) for item in data}
    if len(inner) > 1:
        raise ValueError("expected sequences of equal length at every depth")
    return (len(data), *(inner.pop() if inner else ()))


def _from_nested(data: Any, kwargs: dict[str, Any]) -> Any:
    """Stack the numbers of nested lists, some of which are tensors, as ``torch.tensor`` reads them."""
    numbers = list(leaves(data))
    for leaf in numbers:
        if isinstance(leaf, Tensor) and leaf.numel() != 1:
            raise ValueError("only one element tensors can be converted to Python scalars")
    dtype = kwargs.get("dtype")
    if dtype is None:
        dtype = numbers[0].dtype if isinstance(numbers[0], Tensor) else torch.tensor(numbers[0]).dtype
        for leaf in numbers[1:]:
            dtype = torch.promote_types(dtype, leaf.dtype if isinstance(leaf, Tensor) else torch.tensor(leaf).dtype)
    scalars = [
        a.detach().reshape(()).to(dtype) if isinstance(a, Tensor) else torch.tensor(a, dtype=dtype) for a in numbers
    ]
    out = torch.stack(scalars).reshape(_shape(data)).clone(memory_format=torch.contiguous_format)
    return out.to(device=kwargs["device"]) if kwargs.get("device") is not None else out


def _line(op: Any) -> RuleFunction:
    """Make the rule of linspace or logspace between scalars that are tensors."""
    logarithmic = "logspace" in op.name()

    def line(info: Any, in_dims: Any, start: Any, end: Any, steps: int, base: float = 10.0, **kwargs: Any) -> Any:
        """(), () -> (steps), from both ends towards the middle."""
        if any(a.ndim - (d is not None) for a, d in zip((start, end), in_dims, strict=False) if isinstance(a, Tensor)):
            name = "logspace" if logarithmic else "linspace"
            raise RuntimeError(f"{name} only supports 0-dimensional start and end tensors")
        given = [a.dtype.is_complex if isinstance(a, Tensor) else isinstance(a, complex) for a in (start, end)]
        dtype = kwargs.pop("dtype", None) or _python_dtype(torch.complex64 if any(given) else torch.float32)
        exact = dtype if dtype.is_floating_point or dtype.is_complex else torch.float64
        start, end = (a.detach().to(exact).unsqueeze(-1) if isinstance(a, Tensor) else a for a in (start, end))
        device = kwargs.get("device") or (start if isinstance(start, Tensor) else end).device
        i = torch.arange(steps, dtype=exact, device=device)
        step = (end - start) / max(steps - 1, 1)
        out = (
            torch.where(i.real < steps // 2, start + step * i, end - step * (steps - 1 - i))
            if steps > 1
            else start + step * i
        )
        return (torch.pow(base, out) if logarithmic else out).to(dtype), 0

    return line


for _op in (aten.linspace, aten.logspace):
    pack.family(_line, _op.Tensor_Tensor, _op.Tensor_Scalar, _op.Scalar_Tensor)
    pack.ask(_op.Tensor_Tensor, _op.Tensor_Scalar, _op.Scalar_Tensor)


@pack.rule(aten.zero_.default)
def zero_(info, in_dims, x):
    """(*) in place."""
    return x.zero_(), in_dims[0]


@pack.composite(torch.vander)
def vander(x: Any, N: Any = None, increasing: bool = False) -> Any:
    """(n) -> (n, N): powers 0 to N - 1, or falling."""
    if x.ndim != 1:
        raise RuntimeError("x must be a one-dimensional tensor.")
    columns = x.shape[0] if N is None else N
    if columns < 0:
        raise RuntimeError("N must be non-negative.")
    dtype = x.dtype if x.is_floating_point() or x.is_complex() else torch.int64
    x = x.to(dtype)
    ones = torch.ones((x.shape[0], min(columns, 1)), dtype=dtype, device=x.device)
    powers = torch.cat([ones, x.unsqueeze(1).expand(-1, max(columns - 1, 0)).cumprod(1)], 1)
    return powers if increasing else powers.flip(1)
