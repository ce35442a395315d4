"""The pack is there, and needs no GPU to be."""

import vmap_core


def test_it_is_discovered():
    assert any(p.name == "cuda" and p.error is None for p in vmap_core.packs())
