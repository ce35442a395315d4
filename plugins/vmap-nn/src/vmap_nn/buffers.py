"""`call_with_buffers`: layers that update their buffers (batch norm in training), with buffers of each sample's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vmap_core.extend import places_of, swapped


def call_with_buffers(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
    """Call a module, and return its updated buffers instead of keeping them.

    Inside a mapped function every sample then has running statistics of its own, all starting from the module's; the
    module is left as it was. Batch normalisation in training would else be an error: the loop updates its statistics
    one sample after the other.

    Args:
        module: the module.
        args, kwargs: what it is called with.

    Returns:
        Its output, and its buffers by name.

    Examples:
        >>> import torch
        >>> from vmap_core import vmap
        >>> from vmap_nn import call_with_buffers
        >>> norm = torch.nn.BatchNorm1d(4)
        >>> out, buffers = vmap(lambda x: call_with_buffers(norm, x))(torch.randn(10, 5, 4))
        >>> out.shape, buffers["running_mean"].shape
        (torch.Size([10, 5, 4]), torch.Size([10, 4]))
        >>> norm.num_batches_tracked
        tensor(0)
    """
    places = places_of(module, parameters=False)
    own: dict[str, Tensor] = {}
    for place in places:
        if place.name not in own:
            own[place.name] = place.now.clone()
    with swapped(module, places, [own[place.name] for place in places]):
        out = module(*args, **kwargs)
        return out, {place.name: place.now for place in places}
