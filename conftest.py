"""What all tests share: Triton's interpreter where there is no GPU, and no test that needs one."""

import os

import pytest
import torch

# Before anything imports Triton (inductor does, where a test compiles): so here, before the first test module.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU, where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
