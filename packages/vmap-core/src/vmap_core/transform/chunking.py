"""Mapping a batch in chunks, to bound memory."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import user_location
from ..levels import tree
from ..levels.randomness import generator_state, set_generator_state
from ..torch_compat.functorch import transforms_active
from ..torch_compat.mode_stack import stack_size
from ..torch_compat.tensors import dual_level
from . import memory

FIRST = 8  # samples of the first chunk, which is measured


def is_whole(number: Any) -> bool:
    """Tell whether something is an integer, of Python's or NumPy's, and no truth value."""
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)


def run_in_chunks(
    run: Callable[[int, list[Any]], Any],
    size: int,
    chunk_size: int | str,
    leaves: list[Any],
    dims: list[int | None],
    out_dims: Any,
    randomness: str,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Any:
    """Run a mapped call on chunks of the batch and join the outputs.

    Args:
        run: maps ``(batch size, inputs)``.
        size: the batch size; an empty batch is one chunk.
        chunk_size: samples a chunk, at most; or "auto".
        leaves: the flat inputs.
        dims: their batch dims.
        out_dims: as given to vmap. An output with None does not depend on the sample: the first chunk's is returned.
        randomness: under ``"same"`` every chunk starts from the same state of the generators.
        memory_budget: bytes that a chunk may take, for "auto".
        progress: whether to show a bar.
    """
    chunks = _Measured(size, leaves, memory_budget) if isinstance(chunk_size, str) else _Fixed(chunk_size)
    joined: list[Parts] = []
    places: list[Any] = []
    spec: Any = NOTHING_YET
    generators = _Generators() if randomness == "same" and chunks.size < size else None
    with generators or contextlib.nullcontext(), _bar(size, progress) as advance:
        start = 0
        while start < size or spec is NOTHING_YET:
            if generators is not None:
                generators.rewind()
            length = min(chunks.size, size - start)
            chunk = [leaf if d is None else leaf.narrow(d, start, length) for leaf, d in zip(leaves, dims, strict=True)]
            try:
                out = chunks.call(run, length, chunk)
            except Exception as error:
                if not chunks.shrink(error, length):
                    raise
                continue
            flat: list[Any] = []
            first, spec = spec is NOTHING_YET, tree.flatten(out, flat)
            if first and length >= size:
                advance(length)
                return tree.unflatten(spec, iter(flat))
            if first:
                places = _places(spec, out_dims)
                joined = [
                    Parts(size, dim if isinstance(x, Tensor) else None) for x, dim in zip(flat, places, strict=True)
                ]
            del out  # of large outputs, no more than a chunk is to be there twice
            for parts in reversed(joined):
                parts.add(flat.pop())
            start += length
            advance(length)
    spec = tree.with_dim(tree.without_dim(spec, places, out_dims), places, size, out_dims)
    return tree.unflatten(spec, iter([parts.whole() for parts in joined]))


def _places(spec: Any, out_dims: Any) -> list[Any]:
    """Return where each output has its batch dim."""
    is_single = isinstance(out_dims, tuple) and spec is None and len(out_dims) == 1
    places = list(out_dims) if is_single else tree.broadcast(out_dims, spec)
    assert places is not None  # the chunks' own calls have checked it
    return places


class Parts:
    """One output's parts, joined as `torch.cat` joins them.

    Where that allows, memory for all of them is made with the first, and each is written there: parts that are kept until the
    end are twice in memory then.

    Args:
        size: the size of the whole along ``dim``.
        dim: the dim to join along; None where the first part is the whole.
    """

    def __init__(self, size: int, dim: int | None) -> None:
        self.size, self.dim = size, dim
        self.parts: list[Any] = []
        self.memory: Any = None
        self.filled = 0

    def add(self, part: Any) -> None:
        """Add the next part."""
        if self.dim is None:
            self.parts = self.parts or [part]
            return
        if self.memory is None and not self.parts and _is_plain(part):
            dim = self.dim % part.ndim
            self.memory = part.new_empty((*part.shape[:dim], self.size, *part.shape[dim + 1 :]))
        if self.memory is not None and not (_is_plain(part) and self._fits(part)):
            self.parts = [self.memory.narrow(self.dim, 0, self.filled)]
            self.memory = None
        if self.memory is None:
            self.parts.append(part)
            return
        length = part.shape[self.dim]
        self.memory.narrow(self.dim, self.filled, length).copy_(part)
        self.filled += length

    def _fits(self, part: Any) -> bool:
        return bool(
            part.dtype == self.memory.dtype
            and part.device == self.memory.device
            and part.ndim == self.memory.ndim
            and part.shape == self.memory.narrow(self.dim, self.filled, part.shape[self.dim]).shape
        )

    def whole(self) -> Any:
        """Return all parts as one."""
        if self.memory is not None:
            return self.memory
        return self.parts[0] if self.dim is None else torch.cat(self.parts, self.dim)


def _is_plain(x: Any) -> bool:
    """Tell whether a tensor is its values and no more, and lies in memory as what it is joined to would."""
    return (
        type(x) is Tensor and x.layout is torch.strided and not x.requires_grad and x.is_contiguous()
        and not x.is_quantized and not stack_size() and dual_level() < 0 and not transforms_active()
    )  # fmt: skip


class _Nothing:
    """What there is before the first chunk has run."""


NOTHING_YET = _Nothing()


class _Fixed:
    """Chunks of one size."""

    def __init__(self, size: int) -> None:
        self.size = size

    def call(self, run: Callable[..., Any], length: int, chunk: list[Any]) -> Any:
        return run(length, chunk)

    def shrink(self, error: BaseException, length: int) -> bool:
        return False


class _Measured(_Fixed):
    """Chunks as large as a budget allows, by what a first small one takes; half as large where memory runs out."""

    def __init__(self, total: int, leaves: list[Any], budget: int | None) -> None:
        super().__init__(FIRST)
        self.total = total
        self.tensors = [t for t in leaves if isinstance(t, Tensor)]
        self.budget = budget
        self.measured = self.failed = False

    def call(self, run: Callable[..., Any], length: int, chunk: list[Any]) -> Any:
        if self.failed:  # only now are the frames of the call that failed gone
            memory.reclaim()
            self.failed = False
        self.versions = [t._version for t in self.tensors if not t.is_inference()]
        if self.measured or length == self.total:
            return run(length, chunk)
        with memory.Meter() as meter:
            out = run(length, chunk)
        self.measured = True
        self.size = max(1, int(max(length, 1) * self._times(meter)))
        return out

    def _times(self, meter: memory.Meter) -> float:
        """Return how many times what the meter has seen there is room for."""
        if self.budget is not None:
            return self.budget / max(meter.peak, 1)
        peaks = {device: peak for device, peak in meter.peaks.items() if peak}
        return min((memory.SHARE * memory.free_bytes(d) / p for d, p in peaks.items()), default=self.total)

    def shrink(self, error: BaseException, length: int) -> bool:
        """Go on with half as many samples, if memory ran out and nothing has been written yet."""
        if length <= 1 or not memory.is_out_of_memory(error):
            return False
        if self.versions != [t._version for t in self.tensors if not t.is_inference()]:
            error.add_note(
                f"vmap: chunk_size='auto' at {user_location()} does not try again with a smaller chunk: the function had "
                f"written to its inputs. Instead: pass a chunk_size."
            )
            return False
        self.size = length // 2
        self.measured = self.failed = True
        return True


@contextlib.contextmanager
def _bar(size: int, progress: bool) -> Any:
    """Yield what is called with the number of samples done."""
    if not progress:
        yield lambda length: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "vmap: progress=True shows a bar of tqdm, which is not installed: pip install tqdm"
        ) from error
    with tqdm(total=size, unit="sample") as bar:
        yield bar.update


class _Generators(TorchFunctionMode):
    """Notes where the generators stand: the default ones now, those given to a call when it comes by."""

    def __init__(self) -> None:
        super().__init__()
        found = [torch.default_generator]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found += torch.cuda.default_generators
        self.states = {g: generator_state(g) for g in found}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for a in (*args, *kwargs.values()):
            if isinstance(a, torch.Generator) and a not in self.states:
                self.states[a] = generator_state(a)
        return func(*args, **kwargs)

    def rewind(self) -> None:
        for generator, state in self.states.items():
            set_generator_state(generator, state)
