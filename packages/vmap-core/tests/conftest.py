"""After every test the level stack must be empty, whatever the test did."""

import pytest
import torch

from vmap_core.levels.stack import current_levels


@pytest.fixture(autouse=True)
def clean_stack():
    torch.manual_seed(0)
    yield
    assert current_levels() == []
