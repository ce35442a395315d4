"""The transforms: vmap, custom_vmap, chunks."""
