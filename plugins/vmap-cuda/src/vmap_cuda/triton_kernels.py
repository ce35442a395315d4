"""`triton_rule`: Triton kernels that a mapped function launches, run once for all samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version
from torch.overrides import handle_torch_function, has_torch_function

from vmap_core.extend import (
    BatchedTensor,
    InplaceError,
    RulePack,
    UnsupportedError,
    leaves,
    promote,
    unrepeated,
    user_location,
)

pack = RulePack("cuda.triton")
MAX_PROGRAMS = 2**31 - 1  # in the first grid axis

# One vmap level: its size, and where each batched parameter has its batch dim.
Axis = tuple[int, dict[str, int]]


class TritonRule:
    """A Triton kernel that may be launched inside mapped functions; see `triton_rule`."""

    def __init__(self, kernel: Any, mutates_args: Sequence[str] | None, strided_args: Sequence[str]) -> None:
        """Wrap a kernel."""
        self.kernel = kernel
        jitted = _source().jitted(kernel)
        self.__name__: str = jitted.fn.__name__
        self.parameters: list[str] = list(jitted.arg_names)
        self.mutates_args = _source().written(jitted) if mutates_args is None else frozenset(mutates_args)
        self.strided_args = frozenset(strided_args)
        unknown = self.mutates_args.union(strided_args).difference(self.parameters)
        if unknown:
            raise ValueError(
                f"triton_rule: {self.__name__} has no parameters {sorted(unknown)}, only {self.parameters}"
            )

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """Return what launches the kernel on a grid, as for the kernel itself."""
        return lambda *args, **kwargs: self.run(*args, grid=grid, warmup=False, **kwargs)

    def run(self, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        """Launch the kernel: for all samples, where an argument is batched."""
        if warmup or not has_torch_function((*args, *kwargs.values())):
            return self.kernel.run(*args, grid=grid, warmup=warmup, **kwargs)
        if len(args) > len(self.parameters):
            raise TypeError(f"{self.__name__} takes {len(self.parameters)} arguments, got {len(args)}")
        given = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        return launch(self, grid, given, ())

    def __getattr__(self, name: str) -> Any:
        """Be the kernel in everything else."""
        return getattr(self.kernel, name)

    def __repr__(self) -> str:
        """Name the kernel."""
        return f"triton_rule({self.__name__})"


def triton_rule(
    kernel: Any, *, mutates_args: Sequence[str] | None = None, strided_args: Sequence[str] = ()
) -> TritonRule:
    """Let a Triton kernel be launched inside mapped functions, once for all samples.

    The kernel for one sample gets one more grid axis, folded into the first, and each pointer to batched data a batch
    stride; nested levels add axes. Values and shapes are those of the loop over the samples, by the same code. As
    outside vmap, autograd sees nothing of a launch but that its targets are written to: wrap it in a
    ``torch.autograd.Function`` for gradients.

    Args:
        kernel: a function decorated with ``triton.jit``, also under ``triton.autotune`` or ``triton.heuristics``.
        mutates_args: the pointers through which the kernel writes; by default what its source says.
        strided_args: the pointers whose strides the kernel is given, all of them. Another one must point to contiguous
            samples, or the launch is an error: batching may have put the samples' elements apart.

    Returns:
        What takes the kernel's place: ``kernel = triton_rule(kernel)``, or ``library.kernel = triton_rule(library.kernel)``
        for a kernel of someone else's; it works as a decorator above ``@triton.jit`` too.

    Example::

        @vmap_cuda.triton_rule
        @triton.jit
        def double(x, out, n, BLOCK: tl.constexpr):
            at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            tl.store(out + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)

        def f(x):  # (n,) -> (n,)
            out = torch.empty_like(x)
            double[(triton.cdiv(len(x), 128),)](x, out, len(x), BLOCK=128)
            return out

        vmap(f)(torch.randn(16, 1000, device="cuda"))
    """
    return TritonRule(kernel, mutates_args, strided_args)


def _source() -> ModuleType:
    """Import what needs Triton."""
    try:
        from . import _triton_source
    except ImportError as error:
        raise ImportError(
            f"vmap_cuda.triton_rule needs Triton, which cannot be imported ({error}): pip install vmap-cuda[triton]"
        ) from error
    return _triton_source


class _Launch:
    """A launch, as one call that levels and captured programs see."""

    __name__ = __qualname__ = "launch"
    mutates_args = True  # a captured program keeps it, though it returns nothing

    def __call__(self, rule: TritonRule, grid: Any, given: dict[str, Any], axes: tuple[Axis, ...]) -> Any:
        """Launch a kernel.

        Args:
            rule: the kernel.
            grid: its grid for one sample, or a function of the meta-parameters that returns it.
            given: its arguments and options by name, with all batch dims.
            axes: the levels that have been passed, innermost first.
        """
        tensors = tuple(given.values())
        if has_torch_function(tensors):
            return handle_torch_function(self, tensors, rule, grid, given, axes)
        if not axes:
            return self.written(rule, given, rule.kernel[grid](**given))
        samples = math.prod(size for size, _ in axes)
        if not samples:
            return None
        pointers = tuple(name for name in given if any(name in dims for _, dims in axes))
        numbers = {"_vmap_samples": samples, **{f"_vmap_size_{i}": size for i, (size, _) in enumerate(axes)}}
        firsts = {}
        for name in pointers:
            dims = [own.get(name) for _, own in axes]
            strides = [0 if d is None else given[name].stride(d) for d in dims]
            numbers |= {f"_vmap_stride_{name}_{i}": stride for i, stride in enumerate(strides)}
            firsts[name] = _first_sample(given[name], dims)
            self.check(rule, name, firsts[name], zip(axes, strides, strict=True))
        kernel = _source().batched(rule.kernel, pointers, len(axes))
        return self.written(rule, given, kernel[_longer(grid, samples)](**{**given, **firsts}, **numbers))

    def written(self, rule: TritonRule, given: dict[str, Any], out: Any) -> Any:
        """Tell autograd, and whoever else looks, what a launch has written to."""
        targets = (given.get(name) for name in rule.mutates_args)
        increment_version([t for t in targets if isinstance(t, Tensor) and not t.is_inference()])
        return out

    def check(self, rule: TritonRule, name: str, sample: Tensor, axes: Iterable[tuple[Axis, int]]) -> None:
        """Raise where a kernel may not do for samples in a batch what it does for one."""
        if name in rule.mutates_args and any(size > 1 and not stride for (size, _), stride in axes):
            raise InplaceError(
                f"vmap: the Triton kernel {rule.__name__} writes to {name}, whose samples share their memory, at "
                f"{user_location()}. Instead: write to a clone()."
            )
        if name not in rule.strided_args and not sample.is_contiguous():
            raise UnsupportedError(
                f"vmap: {name} of the Triton kernel {rule.__name__} has samples of shape {tuple(sample.shape)} with strides "
                f"{sample.stride()}, at {user_location()}. Instead: {name}.contiguous(); or, if the kernel is given all its "
                f"strides, triton_rule(kernel, strided_args=[{name!r}])."
            )


launch = _Launch()


def _first_sample(x: Tensor, dims: Sequence[int | None]) -> Tensor:
    shape, stride = [[n for d, n in enumerate(sizes) if d not in dims] for sizes in (x.shape, x.stride())]
    return x.detach().as_strided(shape, stride, x.storage_offset())


def _longer(grid: Any, samples: int) -> Any:
    """Return a grid whose first axis is so many times as long."""
    if callable(grid):
        return lambda meta: _longer(grid(meta), samples)
    first, *others = grid
    if first * samples > MAX_PROGRAMS:
        raise UnsupportedError(
            f"vmap: {samples} samples of {first} programs are more than a grid axis holds. Instead: chunk_size"
        )
    return first * samples, *others


@pack.logical(launch)
def map_launch(level: Any, rule: TritonRule, grid: Any, given: dict[str, Any], axes: tuple[Axis, ...]) -> Any:
    """Add the level to the axes of a launch; what the kernel writes to gets a batch dim first."""

    def here(x: Any) -> bool:
        return type(x) is BatchedTensor and x._level is level

    for name, value in given.items():
        held = () if isinstance(value, Tensor) else (*leaves(value), getattr(value, "base", None))  # a descriptor's
        if any(type(v) is BatchedTensor for v in held):
            raise UnsupportedError(
                f"vmap: {name} of the Triton kernel {rule.__name__} holds tensors in a {type(value).__name__}, at "
                f"{user_location()}. Instead: hand the kernel pointers."
            )
    targets = [given[name] for name in rule.mutates_args if isinstance(given.get(name), Tensor)]
    if any(here(x) and x._bdim is not None for x in given.values()):
        for target in targets:
            promote(level, target, rule.__name__)
    values = {name: x._value if here(x) else x for name, x in given.items()}
    own = {name: x._bdim for name, x in given.items() if here(x) and x._bdim is not None}
    if not own:
        with unrepeated(level, rule, targets):
            return launch(rule, grid, values, axes)
    moved = tuple((size, {k: d + (k in own and own[k] <= d) for k, d in dims.items()}) for size, dims in axes)
    return launch(rule, grid, values, (*moved, (level.batch_size, own)))
