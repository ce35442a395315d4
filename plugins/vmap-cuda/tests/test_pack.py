"""The pack is there, and needs no GPU to be."""

import vmap_core


def test_it_is_discovered():
    assert any(p.name == "cuda" and p.error is None for p in vmap_core.packs())


def test_nothing_heavy_is_imported():
    import subprocess
    import sys

    code = "import sys, vmap_cuda, vmap_core; vmap_core.packs(); print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_it_is_in_the_table():
    found = next(p for p in vmap_core.packs() if p.name == "cuda")
    assert found.error is None and found.rules > 45
