"""Every rule against the loop over the batch."""

import pytest
import torch
from acme_vmap import clip_rows, jitter, row_extremes, shrink, shrink_

from vmap_core import packs
from vmap_core.testing import check_rule

CASES = {
    "clip_rows": (clip_rows, (torch.randn(4, 3), torch.tensor(0.5))),
    "shrink": (shrink, (torch.randn(4, 3), torch.rand(3))),
    "shrink_": (shrink_, (torch.randn(4, 3), torch.rand(3))),
    "row_extremes": (row_extremes, (torch.randn(4, 3),)),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, sample = CASES[name]
    assert check_rule(op, *sample) > 5


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_random(randomness):
    assert check_rule(jitter, torch.randn(4, 3), randomness=randomness) > 2


def test_the_pack_is_found():
    assert {p.name: p.rules for p in packs()}["acme"] == 5
