"""A part of the sweep of refused calls that CI runs: a few of every OpInfo entry, drawn with a seed."""

import pytest

from .refusals import OUT_OF_BOUNDS, PERMITTED, refusals_of
from .sweep import entries, full_name

CALLS = 6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", entries(""), ids=full_name)
def test_operator(op):
    if full_name(op) in PERMITTED:  # all of its calls, so that an entry that no longer occurs is seen
        error, reason = PERMITTED[full_name(op)]
        count, permitted = refusals_of(op, None)
        assert permitted and all(error in line for line in permitted), (permitted, reason)
        return
    count, permitted = refusals_of(op, CALLS)
    assert permitted == [], count


def test_known_entries_exist():
    assert {*PERMITTED, *OUT_OF_BOUNDS} <= {full_name(op) for op in entries("")}
