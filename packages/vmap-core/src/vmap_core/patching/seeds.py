"""A patch at `torch.manual_seed`, after which the samples of the loop would draw the same numbers."""

from __future__ import annotations

from typing import Any

from ..errors import RandomnessError, user_location
from ..levels.stack import current_levels
from ..torch_compat.mode_stack import stack_size
from .registry import patch


@patch(
    "torch.random.manual_seed",
    "Set inside a mapped function, a seed gives all samples the same numbers: randomness='different' would not.",
    holders=("torch",),
)
def refuse_seed(native: Any) -> Any:
    """Set the seed, unless samples are to draw different numbers from it."""

    def manual_seed(seed: Any) -> Any:
        if stack_size():
            for level in current_levels():
                if level.randomness == "different" and level.batch_size > 1:
                    raise RandomnessError(
                        f"vmap: torch.manual_seed at {user_location()}, in vmap of {level.name!r} with "
                        f"randomness='different': the loop would set the seed for each sample, so that all draw the same "
                        f"numbers. Instead: say randomness='same', or set the seed outside."
                    )
        return native(seed)

    return manual_seed
