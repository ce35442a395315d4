"""Properties of Tensor that are views: T, mT, mH, H, real, imag, data."""

from __future__ import annotations

from typing import Any

import torch

from ..rulekit.by_shape import by_shape
from ..rulekit.dims import physical_dim
from ..rulekit.rule import RuleFunction, RulePack, may_return_self
from ..torch_compat.operators import named_aten as aten
from . import view

pack = RulePack("core.properties")


def _getter(name: str) -> Any:
    """Return what PyTorch calls a property of Tensor by."""
    return getattr(torch.Tensor, name).__get__


def _property(name: str, operator: str, mark: Any = by_shape) -> None:
    """Answer a property of Tensor with the operator that computes it."""

    def view_property(info: Any, in_dims: Any, x: Any) -> Any:
        return view.pack.rules[getattr(aten, operator).default].function(info, in_dims, x)

    pack.add(_getter(name), mark(view_property))


_property("T", "numpy_T")


def _matrix(name: str, conjugate: bool) -> RuleFunction:
    def matrix_transpose(info: Any, in_dims: Any, x: Any) -> Any:
        """(*, n, m) -> (*, m, n), conjugated for mH and H."""
        bdim, rank = in_dims[0], x.ndim - 1
        if rank == 1:
            which = "matrices (2-D tensors)" if name == "H" else "matrices or batches of matrices"
            raise RuntimeError(f"tensor.{name} is only supported on {which}. Got {rank}-D tensor.")
        if name == "H" and rank > 2:
            raise RuntimeError(
                f"tensor.H is only supported on matrices (2-D tensors). Got {rank}-D tensor. For batches of matrices, "
                f"consider using tensor.mH"
            )
        out = x.transpose(physical_dim(-2, rank, bdim), physical_dim(-1, rank, bdim)) if rank else x
        return (out.conj() if conjugate and out.is_complex() else out), bdim

    return by_shape(matrix_transpose)


for _name, _conjugate, _ops in (
    ("mT", False, (aten.mT.default, _getter("mT"))),
    ("mH", True, (aten.mH.default, aten.adjoint.default, _getter("mH"))),
    ("H", True, (aten.matrix_H.default, _getter("H"))),
):
    for _op in _ops:
        pack.add(_op, _matrix(_name, _conjugate))

_property("real", "real", may_return_self)
_property("imag", "imag")
_property("data", "detach")
