"""A call of an operator that exists only on CUDA."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Case:
    """A function of one sample's tensors.

    Attributes:
        run: the function.
        make: makes its tensors, from a maker of random ones.
        ops: the operators it calls once each.
        one_call: for in_dims, whether one call has to serve all samples. (Else there may be one each, with a warning.)
        gradients: whether PyTorch has derivatives.
        shapes: whether the operators have shape functions, so that fake tensors do.
        dtype: of the tensors on a GPU.
        cpu_dtype: of those on a CPU.
        random: whether it draws.
        on_gpu: whether the shapes are ones that a GPU's kernels accept.
    """

    run: Callable[..., Any]
    make: Callable[[Callable[..., torch.Tensor]], list[torch.Tensor]]
    ops: tuple[Any, ...] = ()
    one_call: Callable[[Any], bool] = lambda dims: True
    gradients: bool = True
    shapes: bool = True
    dtype: torch.dtype = torch.float32
    cpu_dtype: torch.dtype = torch.double
    random: bool = False
    on_gpu: bool = True
