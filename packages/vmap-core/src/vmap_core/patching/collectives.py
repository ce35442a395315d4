"""Patches at the collectives of ``torch.distributed``, whose rules are in `rules.collectives`."""

from __future__ import annotations

from typing import Any

from ..levels.entry import dispatch
from ..levels.stack import current_levels
from ..levels.tensor import BatchedTensor
from ..torch_compat.distributed import COLLECTIVES, hands_over
from ..torch_compat.mode_stack import stack_size
from .registry import Patch, patch


def _handing_over(function: Any) -> Any:
    """Make what makes a collective that asks for its rule."""

    def make(native: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if stack_size() and current_levels():
                return dispatch(function, args, kwargs)
            return native(*args, **kwargs)

        return run

    return make


for _what in COLLECTIVES:
    if _what.function is not None and not hands_over(_what.function):
        Patch(
            f"torch.distributed.distributed_c10d.{_what.name}",
            _handing_over(_what.function),
            "Before PyTorch 2.13 it does not ask for a rule.",
            inside=True,
        )


@patch(
    "torch.distributed._functional_collectives._maybe_wrap_tensor",
    "It wraps what a functional collective gives, to wait for it when it is used: of batched tensors it is there already.",
    waits_for="torch.distributed._functional_collectives",
)
def leave_batched(native: Any) -> Any:
    """Return a batched tensor as it is."""

    def maybe_wrap_tensor(tensor: Any) -> Any:
        return tensor if type(tensor) is BatchedTensor else native(tensor)

    return maybe_wrap_tensor
