"""What a BatchedTensor answers itself, without a rule: metadata, reads, Python's protocols."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from . import read
from .entry import outside
from .graph_node import of_sample, physical_with_dims
from .layout import contiguous_strides, sample_layout
from .stack import physically
from .tensor import BatchedTensor

if TYPE_CHECKING:
    Base = BatchedTensor
else:
    Base = object


class TensorAPI(Base):
    """What BatchedTensor answers itself, without a rule; `methods` puts it there."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Reached only when no level on the stack took the call: the tensor has escaped."""
        return outside(func, args, kwargs or {})

    # Metadata: logical, computed here, never through a rule.

    @property
    def shape(self) -> torch.Size:
        """The logical shape, without the batch dim."""
        shape = physically(_get_shape, self._value)
        d = self._bdim
        if not d:
            return shape if d is None else shape[1:]
        return torch.Size(shape[:d] + shape[d + 1 :])

    def size(self, dim: int | None = None) -> Any:
        """Return the logical shape, or one of its entries."""
        shape = self.shape
        return shape if dim is None else shape[_logical(dim, len(shape))]

    @property
    def ndim(self) -> int:
        """The logical rank."""
        rank = self._rank
        if not rank:
            self._rank = rank = physically(_get_ndim, self._value)
        return rank - (self._bdim is not None)

    def dim(self) -> int:
        """Return the logical rank."""
        return self.ndim

    ndimension = dim

    def numel(self) -> int:
        """Return the number of logical elements."""
        return self.shape.numel()

    nelement = numel

    def __len__(self) -> int:
        """Return the size of the first logical dim."""
        if not self.ndim:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def stride(self, dim: int | None = None) -> Any:
        """Return the strides of the logical tensor."""
        strides = self._layout()[0]
        return strides if dim is None else strides[_logical(dim, self.ndim)]

    def is_contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
        """Tell whether each sample's tensor is contiguous."""
        return contiguous_strides(self.shape, self.stride(), memory_format)

    def storage_offset(self) -> int:
        """Return where the logical tensor begins in its storage; of a tensor that is mapped over, that of the first sample."""
        return self._layout()[1]

    def _layout(self) -> tuple[tuple[int, ...], int]:
        bdim, exact = self._bdim, not self._bdim or self._origin is not None
        return physically(lambda value: sample_layout(value, bdim, exact), self._value)  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's tensor."""
        return self.numel() * self.element_size()

    @property
    def grad_fn(self) -> Any:
        """The node of the graph that made the physical tensor; its hooks would see all samples at once."""
        value, dims = physical_with_dims(self)
        node, number = physically(_get_grad_fn, value)
        return of_sample(node, number, dims)

    # Reads of the value: all of them through one door.

    def item(self) -> Any:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return read.item(self, "item()")

    def tolist(self) -> Any:
        """Read the values, if every sample shares them; else raise DataDependentError."""
        return read.tolist(self)

    def numpy(self, *, force: bool = False) -> Any:
        """Return the array of a tensor that is not batched; else raise DataDependentError."""
        return read.value(self, "numpy()").numpy(force=force)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the array of a tensor that is not batched; else raise DataDependentError."""
        return read.value(self, "numpy()").__array__(*args, **kwargs)

    def __bool__(self) -> bool:
        """Read the truth value, if every sample shares it; else raise DataDependentError."""
        return read.truth(self)

    def __int__(self) -> int:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return int(read.item(self, "int()"))

    def __index__(self) -> int:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return read.index(self)

    def __float__(self) -> float:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return float(read.item(self, "float()"))

    def __complex__(self) -> complex:
        """Read the value, if every sample shares it; else raise DataDependentError."""
        return complex(read.item(self, "complex()"))

    def __contains__(self, element: Any) -> bool:
        """Ask whether an element is among the values."""
        return bool((self == element).any())

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the first logical dim."""
        if not self.ndim:
            raise TypeError("iteration over a 0-d tensor")
        return iter(self.unbind(0))

    def __reversed__(self) -> Any:
        """Return the tensor flipped in its first dim."""
        return self.flip(0) if self.ndim else self

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Show the level, the batch dim and the physical value."""
        return read.describe(self)

    def __format__(self, spec: str) -> str:
        """Format as `repr`; a format of the value would be a read."""
        return repr(self) if not spec else format(read.item(self, "format()"), spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle what all samples share; a batched tensor means nothing outside its level."""
        if self._bdim is not None:
            raise read.unsupported(self, "pickle", "return it from the mapped function")
        return self._value.__reduce_ex__(protocol)

    def __copy__(self) -> Any:
        """Return a tensor that shares this one's memory and is a leaf, as Tensor does."""
        return self.detach().requires_grad_(self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Clone, for an unbatched or leaf tensor, as Tensor does."""
        result = self.detach().clone()
        return result.requires_grad_() if self.requires_grad else result

    # Exchange with other libraries.

    def __dlpack__(self, **options: Any) -> Any:
        """Lend the memory of what all samples share; refuse that of a batched tensor."""
        if self._bdim is not None:
            raise read.unsupported(self, "exchange by dlpack", "return it from the mapped function")
        return self._value.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        """Return where the memory is."""
        return physically(_get_dlpack_device, self._value)


_get_shape = operator.attrgetter("shape")
_get_grad_fn = operator.attrgetter("grad_fn", "output_nr")
_get_dlpack_device = operator.methodcaller("__dlpack_device__")
_get_ndim = operator.attrgetter("ndim")


def _logical(dim: int, ndim: int) -> int:
    """Check a dim against the logical rank, with the texts of PyTorch's own errors."""
    if not ndim:
        raise IndexError(f"Dimension specified as {dim} but tensor has no dimensions")
    if not -ndim <= dim < ndim:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-ndim}, {ndim - 1}], but got {dim})")
    return dim % ndim
