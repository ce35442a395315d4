"""The main job runs, on a part of the data, and its table says what it should."""

import pytest

from vmap_core import demo

pytest.importorskip("sklearn")


def test_the_three_uses():
    rows = demo.run(demo.load_digits()[:20], repeat=1)
    assert [r.result for r in rows] == ["20", "20 x 64", "20 x 64"]
    assert all(r.difference < 1e-5 for r in rows)
    assert len(demo.table(rows).splitlines()) == 5


def test_from_the_command_line(capsys):
    demo.main(["--samples", "10", "--repeat", "1"])
    assert "per-sample gradients" in capsys.readouterr().out
