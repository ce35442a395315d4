"""Random operations, in the three modes of ``randomness``.

The stream of random numbers is part of the contract. ``different`` makes one call on the physical tensor, batch dim
first; ``same`` makes one call on a single sample's. So under one seed the numbers are those of the unmapped call.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UnsupportedError, user_location
from ..levels.args import unwrap, wrap
from ..rulekit.dims import ensure_bdim, logical_rank, pad_rank, to_front
from ..rulekit.loop import loop
from ..rulekit.rule import RuleFunction, RulePack
from ..torch_compat.bindings import emitter
from ..torch_compat.operators import named_aten as aten
from .view import logical_shape

pack = RulePack("core.random")


def one_sample(x: Any, bdim: int | None) -> Any:
    """Return a tensor with the shape, strides, dtype and device of one sample; its values are of no interest."""
    if bdim is None:
        return x
    return x.select(bdim, 0) if x.shape[bdim] else x.new_empty(logical_shape(x, bdim))


def _from_size(op: Any) -> RuleFunction:
    """Make the rule of a factory: it draws ``size`` numbers."""
    at = [a.name for a in op._schema.arguments].index("size")
    emit = emitter(op)

    def draw(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        """Draw (*size)."""
        info.require_randomness(op)
        if info.randomness == "same":
            return emit(*args, **kwargs), None
        return emit(*args[:at], (info.batch_size, *args[at]), *args[at + 1 :], **kwargs), 0

    return draw


pack.family(
    _from_size,
    aten.rand.default,
    aten.rand.generator,
    aten.randn.default,
    aten.randn.generator,
    aten.randint.default,
    aten.randint.generator,
    aten.randint.low,
    aten.randint.low_generator,
    aten.normal.float_float,
)


def _from_shape(op: Any) -> RuleFunction:
    """Make the rule of an operator that takes nothing but its shape and dtype from its first argument."""

    def draw_like(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        """(*) -> (*)."""
        info.require_randomness(op)
        bdim = in_dims[0]
        _no_batched(op, in_dims[1:])
        if info.randomness == "same":
            return op(one_sample(x, bdim), *args, **kwargs), None
        x = ensure_bdim(x, bdim, info.batch_size)
        memory_format = kwargs.get("memory_format")
        if memory_format in (torch.channels_last, torch.channels_last_3d):
            one = torch.empty(x.shape[1:], device="meta").contiguous(memory_format=memory_format)
            x = x.new_empty_strided(x.shape, (one.numel(), *one.stride()))
            kwargs = {k: v for k, v in kwargs.items() if k != "memory_format"}
        return op(x, *args, **kwargs), 0

    return draw_like


def _no_batched(op: Any, in_dims: Any) -> None:
    if any(d is not None and d != {} for d in in_dims):
        raise UnsupportedError(
            f"vmap: {op} reads one of its arguments as a number, which must be the same for all samples; it is batched "
            f"at {user_location()}"
        )


pack.family(
    _from_shape,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.randint_like.default,
    aten.randint_like.low_dtype,
    aten.rand_like.generator,
    aten.randn_like.generator,
    aten.randint_like.generator,
    aten.randint_like.low_generator_dtype,
    aten.randint_like.Tensor_generator,
    aten.randint_like.Tensor,
    aten.bernoulli.p,
    aten.uniform.default,
    aten.exponential.default,
    aten.cauchy.default,
    aten.log_normal.default,
    aten.geometric.default,
    aten.random.default,
    aten.random.to,
    getattr(aten.random, "from"),
)


def _fill(op: Any) -> RuleFunction:
    """Make the rule of an operator that overwrites a tensor with random numbers."""

    def fill_(info: Any, in_dims: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        """(*) in place."""
        bdim = in_dims[0]
        if info.randomness == "different":
            op(to_front(x, bdim), *args, **kwargs)
        else:
            drawn = op(x.new_empty(logical_shape(x, bdim)), *args, **kwargs)
            x.copy_(drawn.unsqueeze(bdim))
        return x, bdim

    return fill_


pack.family(
    _fill,
    aten.uniform_.default,
    aten.normal_.default,
    aten.exponential_.default,
    aten.cauchy_.default,
    aten.log_normal_.default,
    aten.geometric_.default,
    aten.bernoulli_.float,
    aten.random_.default,
    aten.random_.to,
    getattr(aten.random_, "from"),
)


@pack.rule(aten.bernoulli_.Tensor)
def bernoulli_(info, in_dims, x, p, *, generator=None):
    """(*), (*p) -> (*) in place."""
    p_bdim = in_dims[1]
    if p_bdim is None and info.randomness == "same":
        return _fill(aten.bernoulli_.Tensor)(info, in_dims, x, p, generator=generator)
    if info.randomness == "same":
        shape = logical_shape(x, in_dims[0])
        p = to_front(p, p_bdim)
        p = pad_rank(p, 0, len(shape)).expand(p.shape[0], *shape)
        drawn, _ = pack.rules[aten.bernoulli.default].function(info, (0,), p, generator=generator)
        x.copy_(drawn.movedim(0, in_dims[0]))
    else:
        front = to_front(x, in_dims[0])
        aten.bernoulli_.Tensor(front, pad_rank(p, p_bdim, front.ndim - 1), generator=generator)
    return x, in_dims[0]


def _from_parameters(op: Any) -> RuleFunction:
    """Make the rule of an elementwise operator that draws from distributions its arguments describe."""

    def sample(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
        """(*), (*) -> (*), broadcast."""
        info.require_randomness(op)
        tensors = [(a, d) for a, d in zip(args, in_dims, strict=False) if isinstance(a, torch.Tensor)]
        if info.randomness == "same":
            if all(d is None for _, d in tensors):
                return op(*args, **kwargs), None
            return _same(info, op, in_dims, args, kwargs)
        return op(*_batch_first(info, tensors, args, in_dims), **kwargs), 0

    return sample


def _batch_first(info: Any, tensors: Any, args: Any, in_dims: Any) -> list[Any]:
    rank = max(logical_rank(a, d) for a, d in tensors)
    return [
        pad_rank(ensure_bdim(a, d, info.batch_size), 0, rank) if isinstance(a, torch.Tensor) else a
        for a, d in zip(args, in_dims, strict=False)
    ]


def _same(info: Any, op: Any, in_dims: Any, args: Any, kwargs: Any) -> Any:
    """Draw for parameters that differ by sample what each sample's call would draw from the same state."""
    if op.name() in _NOISE:
        tensors = [(a, d) for a, d in zip(args, in_dims, strict=False) if isinstance(a, torch.Tensor)]
        parameters = _batch_first(info, tensors, args, in_dims)
        noise: Any = _NOISE[op.name()]
        out = noise(*(a.detach() if isinstance(a, torch.Tensor) else a for a in parameters), **kwargs)
        if out is not None:
            for a in parameters:  # the derivative is zero, not missing
                if isinstance(a, torch.Tensor) and a.requires_grad:
                    out = torch.where(torch.zeros((), dtype=torch.bool, device=a.device), a, out)
            return out, 0
    return loop(info, op, in_dims, *args, **kwargs)


def _normal_with_std(mean: Any, std: float, *, generator: Any = None) -> Any:
    return mean + torch.zeros_like(mean[0]).normal_(0.0, std, generator=generator) if len(mean) else mean


def _normal_with_mean(mean: float, std: Any, *, generator: Any = None) -> Any:
    return torch.zeros_like(std[0]).normal_(generator=generator) * std + mean if len(std) else std


def _normal(mean: Any, std: Any, *, generator: Any = None) -> Any:
    shape = torch.broadcast_shapes(mean.shape, std.shape)
    if not shape[0]:
        return mean + std
    return mean.new_empty(shape[1:]).normal_(generator=generator) * std + mean


def _bernoulli(p: Any, *, generator: Any = None) -> Any:
    """On the CPU, a sample is 1 where a uniform number is below p."""
    if p.device.type != "cpu" or not len(p) or not p.is_contiguous() or p.dtype not in (torch.float32, torch.float64):
        return None
    return (torch.empty_like(p[0]).uniform_(generator=generator) < p).to(p.dtype)


_NOISE = {
    "aten::normal.Tensor_float": _normal_with_std,
    "aten::normal.float_Tensor": _normal_with_mean,
    "aten::normal.Tensor_Tensor": _normal,
    "aten::bernoulli": _bernoulli,
}

pack.family(
    _from_parameters,
    aten.normal.Tensor_float,
    aten.normal.float_Tensor,
    aten.normal.Tensor_Tensor,
    aten.bernoulli.default,
    aten.bernoulli.Tensor,
    aten.poisson.default,
    aten.binomial.default,
    aten._standard_gamma.default,
    aten._sample_dirichlet.default,
)


@pack.rule(aten.multinomial.default)
def multinomial(info, in_dims, x, num_samples, replacement=False, *, generator=None):
    """(n) -> (num_samples); (m, n) -> (m, num_samples)."""
    info.require_randomness(aten.multinomial.default)
    bdim = in_dims[0]
    if info.randomness == "same":
        if bdim is None:
            return aten.multinomial.default(x, num_samples, replacement, generator=generator), None
        return loop(info, aten.multinomial.default, in_dims, x, num_samples, replacement, generator=generator)
    rank = logical_rank(x, bdim)
    if rank not in (1, 2):
        raise RuntimeError("prob_dist must be 1 or 2 dim")
    x = ensure_bdim(x, bdim, info.batch_size)
    rows = x if rank == 1 else x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.flatten(0, 1)
    out = aten.multinomial.default(rows, num_samples, replacement, generator=generator)
    return out.reshape(*x.shape[:-1], num_samples), 0


def _permutation(op: Any) -> RuleFunction:
    def randperm(info: Any, in_dims: Any, n: int, **kwargs: Any) -> Any:
        """Draw a permutation (n). There is no batched one: ``different`` draws one after the other, the loop's numbers."""
        info.require_randomness(op)
        if info.randomness == "same" or not info.batch_size:
            return op(n, **kwargs), None
        return torch.stack([op(n, **kwargs) for _ in range(info.batch_size)]), 0

    return randperm


pack.family(_permutation, aten.randperm.default, aten.randperm.generator)


@pack.logical(aten.dropout.default)
def dropout(info, input, p, train):
    """(*) -> (*). In eval mode, and for p = 0, the tensor itself."""
    if not 0 <= p <= 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not train or p == 0 or not input.numel():
        return input
    (x,), (bdim,), _ = unwrap(info, (input,))
    if p < 1:
        info.require_randomness(aten.dropout.default)
        if info.randomness == "same" and bdim is not None:
            mask = x.new_empty(logical_shape(x, bdim)).bernoulli_(1 - p).div_(1 - p)
            return wrap(info, x * mask.unsqueeze(bdim), bdim)
        if info.randomness == "different":
            x, bdim = ensure_bdim(x, bdim, info.batch_size), 0
            if x.device.type == "cpu" and not x.is_contiguous():  # drawn in the order of dims, not of memory
                return wrap(info, x * x.new_empty(x.shape).bernoulli_(1 - p).div_(1 - p), bdim)
    return wrap(info, torch.dropout(x, p, True), bdim)


@pack.logical(aten.native_dropout.default)
def native_dropout(info, input, p, train):
    """(*) -> (*), (*): the result and the mask."""
    (x,), (bdim,), _ = unwrap(info, (input,))
    if train is False:
        return wrap(info, aten.native_dropout.default(x, p, train), bdim)
    info.require_randomness(aten.native_dropout.default)
    if info.randomness == "same" and bdim is not None:
        mask = x.new_empty(logical_shape(x, bdim)).bernoulli_(1 - p)
        scaled = mask * (1 / (1 - p) if p < 1 else 0.0)
        mask = mask.to(torch.bool)
        return wrap(info, x * scaled.unsqueeze(bdim), bdim), wrap(info, mask, None)
    if info.randomness == "different":
        x, bdim = ensure_bdim(x, bdim, info.batch_size), 0
    return wrap(info, aten.native_dropout.default(x, p, train), bdim)


@pack.rule(aten.rrelu_with_noise.default)
def rrelu_with_noise(info, in_dims, x, noise, lower=0.125, upper=1 / 3, training=False, generator=None):
    """(*), (*) -> (*); in training the slopes go to ``noise``."""
    if not training:
        return torch.nn.functional.leaky_relu(x, (lower + upper) / 2), in_dims[0]
    x, noise = ensure_bdim(x, in_dims[0], info.batch_size), to_front(noise, in_dims[1])
    if info.randomness == "same":
        noise.copy_(_slopes(x, lower, upper, generator))
        return x * noise, 0
    return aten.rrelu_with_noise.default(x, noise, lower, upper, training, generator), 0


def _slopes(x: Any, lower: float, upper: float, generator: Any) -> Any:
    """(B, *) -> (B, *): of each sample's negative elements the first gets the first number drawn, and so on."""
    negative = x.detach().reshape(x.shape[0], x.shape[1:].numel()) <= 0
    drawn = torch.empty(negative.shape[1], dtype=torch.double, device=x.device)
    drawn = drawn.uniform_(lower, upper, generator=generator).to(x.dtype)
    order = (negative.cumsum(1) - 1).clamp(min=0)
    return torch.where(negative, drawn[order], 1.0).reshape(x.shape).to(x.dtype)


@pack.rule(aten.rrelu_with_noise_.default)
def rrelu_with_noise_(info, in_dims, x, noise, lower=0.125, upper=1 / 3, training=False, generator=None):
    """(*), (*) -> (*) in place."""
    if not training:
        return torch.nn.functional.leaky_relu_(x, (lower + upper) / 2), in_dims[0]
    front, noise = to_front(x, in_dims[0]), to_front(noise, in_dims[1])
    if info.randomness == "same":
        noise.copy_(_slopes(front, lower, upper, generator))
        front.mul_(noise)
    else:
        aten.rrelu_with_noise_.default(front, noise, lower, upper, training, generator)
    return x, in_dims[0]
