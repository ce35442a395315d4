"""`torch.autograd.functional` inside a mapped function: where it maps over vectors, it does so with our vmap."""

from __future__ import annotations

from typing import Any

from vmap_core import vmap
from vmap_core.extend import current_levels, patch

from ._torch import VMAP_OF_FUNCTIONAL


@patch(
    VMAP_OF_FUNCTIONAL,
    "jacobian and hessian map tangents with it (forward-mode): by our vmap inside mapped functions.",
)
def choose_vmap(native: Any) -> Any:
    """Map by our vmap, inside mapped functions."""

    def choose(func: Any, *args: Any, **kwargs: Any) -> Any:
        return vmap(func) if current_levels() else native(func, *args, **kwargs)

    return choose
