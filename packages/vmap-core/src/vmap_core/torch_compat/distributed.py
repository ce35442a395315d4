"""``torch.distributed``, which a build of PyTorch may lack: what its collectives do to their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

AVAILABLE = torch.distributed.is_available()
_OTHERS = {"all_gather_single", "reduce_scatter_single"}


@dataclass(frozen=True)
class Collective:
    """What a collective does to its arguments, by their names.

    Attributes:
        name: its name in ``torch.distributed``.
        reads: the tensors, and lists of tensors, that it reads.
        writes: those that it writes to.
        parts: those that hold a part for each rank, one after another.
        splits: for such an argument, the argument that may give the sizes of its parts.
        repeatable: it reads what it writes to, and yet gives the same when it is done again.
    """

    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    splits: dict[str, str] = field(default_factory=dict)
    repeatable: bool = False

    @property
    def function(self) -> Callable[..., Any] | None:
        """The function; None where this PyTorch does not have it, or it only calls another collective."""
        function = getattr(torch.distributed.distributed_c10d, self.name, None) if AVAILABLE else None
        return None if function is None or _OTHERS & _names_in(function) else function

    @property
    def tensors(self) -> tuple[str, ...]:
        """The arguments that are tensors, or lists of them."""
        return tuple(dict.fromkeys((*self.reads, *self.writes)))


_SPLITS = {"input": "input_split_sizes", "output": "output_split_sizes"}
COLLECTIVES = (
    Collective("all_reduce", ("tensor",), ("tensor",)),
    Collective("all_reduce_coalesced", ("tensors",), ("tensors",)),
    Collective("reduce", ("tensor",), ("tensor",)),
    Collective("broadcast", ("tensor",), ("tensor",), repeatable=True),
    Collective("all_gather", ("tensor",), ("tensor_list",)),
    Collective("all_gather_coalesced", ("input_tensor_list",), ("output_tensor_lists",)),
    Collective("all_gather_single", ("input_tensor",), ("output_tensor",), ("output_tensor",)),
    Collective("all_gather_into_tensor", ("input_tensor",), ("output_tensor",), ("output_tensor",)),
    Collective("gather", ("tensor",), ("gather_list",)),
    Collective("gather_single", ("tensor",), ("gather_tensor",), ("gather_tensor",)),
    Collective("scatter", ("scatter_list",), ("tensor",)),
    Collective("reduce_scatter", ("input_list",), ("output",)),
    Collective("reduce_scatter_single", ("input",), ("output",), ("input",)),
    Collective("reduce_scatter_tensor", ("input",), ("output",), ("input",)),
    Collective("all_to_all", ("input_tensor_list",), ("output_tensor_list",)),
    Collective("all_to_all_single", ("input",), ("output",), ("input", "output"), _SPLITS),
    Collective("isend", ("tensor",)),  # send() calls it, and recv() irecv()
    Collective("irecv", (), ("tensor",)),
)


def hands_over(function: Callable[..., Any]) -> bool:
    """Tell whether a collective asks ``__torch_function__``, as all do since PyTorch 2.13."""
    return "handle_torch_function" in _names_in(function)


def _names_in(function: Callable[..., Any]) -> set[str]:
    body: Any = inspect.unwrap(function)
    return set(body.__code__.co_names) - {body.__name__}


def is_coalescing(group: Any) -> bool:
    """Tell whether the collectives of a group are put off, to be run together."""
    return (group or torch.distributed.group.WORLD) in torch.distributed.distributed_c10d._world.pg_coalesce_state


def functional(*names: str) -> list[Any]:
    """Return the operators of functional collectives by their names, those with a gradient of their own too."""
    spaces = (torch.ops._c10d_functional, torch.ops._c10d_functional_autograd) if AVAILABLE else ()
    return [getattr(space, name).default for space in spaces for name in names if hasattr(space, name)]
