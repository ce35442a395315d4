"""Reductions, with keepdim as a keyword that only some schemas have."""

import pytest
import torch

from vmap_core.testing import check_rule


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # an empty batch, or one number
@pytest.mark.parametrize("shape", [(), (4,), (3, 4)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("op", [torch.var, torch.std, torch.var_mean])
def test_variance_of_all_dims(op, keepdim, shape):
    check_rule(op, torch.randn(shape), None, correction=0, keepdim=keepdim)
