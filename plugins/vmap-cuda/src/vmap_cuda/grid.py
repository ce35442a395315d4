"""cuDNN's sampling of images at points of a grid: the mapped dim joins N."""

from __future__ import annotations

from vmap_core.extend import RulePack
from vmap_core.extend import named_aten as aten

from ._merge import merged

pack = RulePack("cuda.grid")

# (N, 2, 3) -> (N, H, W, 2), and its gradient back.
pack.family(merged("theta", out=0, counts=("N",)), aten.cudnn_affine_grid_generator.default)
pack.family(merged("grad", out=0, counts=("N",)), aten.cudnn_affine_grid_generator_backward.default)
# (N, C, H, W), (N, h, w, 2) -> (N, C, h, w); its gradients.
pack.family(merged("self", "grid", out=0), aten.cudnn_grid_sampler.default)
pack.family(merged("self", "grid", "grad_output", out=(0, 0)), aten.cudnn_grid_sampler_backward.default)
