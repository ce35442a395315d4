"""Python functions of torch.nn.functional that only arrange arguments: straight to the operator they mean.

Their body would run a second time below the override, at twice the price. What an entry does not cover (None) goes
through the body all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vmap_core.extend import RulePack, call, call_inherent

from ._torch import bindings, reduction_code

pack = RulePack("nn.functional")

Meant = tuple[Any, tuple[Any, ...]] | None  # an operator and its arguments


def _activation(op: Any, op_: Any) -> Callable[..., Meant]:
    """Return the entry of an activation without parameters."""
    return lambda input, inplace=False: (op_ if inplace else op, (input,))


def _reduced(op: Any) -> Callable[..., Meant]:
    """Return the entry of a loss of two tensors, of one shape."""

    def loss(input: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean",
             weight: Any = None) -> Meant:  # fmt: skip
        plain = size_average is None and reduce is None and weight is None and input.shape == target.shape
        return (op, (input, target, reduction_code(reduction))) if plain else None

    return loss


def _leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Meant:
    return bindings.leaky_relu_ if inplace else bindings.leaky_relu, (input, negative_slope)


def _elu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Meant:
    return bindings.elu_ if inplace else bindings.elu, (input, alpha)


def _softmax(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Meant:
    return None if dim is None else (Tensor.softmax, (input, dim) if dtype is None else (input, dim, dtype))


def _log_softmax(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Meant:
    return None if dim is None else (Tensor.log_softmax, (input, dim) if dtype is None else (input, dim, dtype))


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Meant:
    return (torch.dropout, (input, p, training)) if not inplace and 0 <= p <= 1 else None


def _layer_norm(input: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Meant:
    return torch.layer_norm, (input, shape, weight, bias, eps, torch.backends.cudnn.enabled)


def _batch_norm(
    input: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Meant:  # fmt: skip
    if training:  # the body looks at the shape
        return None
    return torch.batch_norm, (input, weight, bias, mean, var, False, momentum, eps, torch.backends.cudnn.enabled)


def _cross_entropy(
    input: Any, target: Any, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Meant:  # fmt: skip
    if size_average is not None or reduce is not None:
        return None
    code = reduction_code(reduction)
    return bindings.cross_entropy_loss, (input, target, weight, code, ignore_index, label_smoothing)


def _embedding(
    input: Any, weight: Any, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Meant:  # fmt: skip
    if padding_idx is not None or max_norm is not None:
        return None
    return torch.embedding, (weight, input, -1, scale_grad_by_freq, sparse)


def _pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Meant:
    return (torch.constant_pad_nd, (input, list(pad), value or 0)) if mode == "constant" else None


MEANT: dict[Any, Callable[..., Meant]] = {
    F.relu: _activation(torch.relu, torch.relu_),
    F.silu: _activation(bindings.silu, bindings.silu_),
    F.mish: _activation(bindings.mish, bindings.mish_),
    F.selu: _activation(torch.selu, torch.selu_),
    F.hardswish: _activation(bindings.hardswish, bindings.hardswish_),
    F.hardsigmoid: _activation(bindings.hardsigmoid, bindings.hardsigmoid_),
    F.leaky_relu: _leaky_relu,
    F.elu: _elu,
    F.softmax: _softmax,
    F.log_softmax: _log_softmax,
    F.dropout: _dropout,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.cross_entropy: _cross_entropy,
    F.embedding: _embedding,
    F.pad: _pad,
    F.mse_loss: _reduced(bindings.mse_loss),
    F.l1_loss: _reduced(bindings.l1_loss),
}


def _straight(function: Any, meant: Callable[..., Meant]) -> Any:
    def straight(info: Any, *args: Any, **kwargs: Any) -> Any:
        found = meant(*args, **kwargs)
        if found is None:
            return call_inherent(info, function, args, kwargs)
        op, given = found
        return call(info, op, given, {})

    return straight


for _function, _meant in MEANT.items():
    pack.logical(_function)(_straight(_function, _meant))
