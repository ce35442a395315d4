"""A part of the sweep of refused calls that CI runs: a few of every OpInfo entry, drawn with a seed."""

import pytest

from .refusals import refusals_of
from .sweep import entries, full_name

CALLS = 6
NAMES = (
    "addbmm|addmm|addmv|addr|baddbmm|cdist|dot|gather|glu|histc|isin|lerp|masked_scatter|masked_select|mv|polar|take|vdot|"
    "nn.functional.(bilinear|cross_entropy|embedding|glu|group_norm|hardswish|huber_loss|layer_norm|"
    "logsigmoid|multi_margin_loss|nll_loss|one_hot|soft_margin_loss)|outer|put|repeat_interleave"
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", entries(f"^({NAMES.replace('.', '[.]')})$"), ids=full_name)
def test_operator(op):
    count, permitted = refusals_of(op, CALLS)
    assert permitted == [], count
