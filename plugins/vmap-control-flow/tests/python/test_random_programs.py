"""Random programs with control flow, mapped and in the loop: a few here, thousands by ``python -m tests.programs.control_flow 0:5000``."""

import signal

import pytest

from tests.programs import control_flow


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_programs_are_the_loop(first):
    before = signal.signal(signal.SIGALRM, control_flow.late)
    try:
        verdicts = {seed: control_flow.verdict(seed)[0] for seed in range(first, first + 20)}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert "DIFFERENT" not in verdicts.values(), verdicts
    refused = [v for v in verdicts.values() if v not in ("equal", "raises")]
    assert len(refused) <= 3, verdicts
