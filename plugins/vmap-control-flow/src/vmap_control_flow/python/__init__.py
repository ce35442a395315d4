"""Python's own control flow on values that differ from sample to sample: ``vmap(f, control_flow="split")``."""

from .calls import split

__all__ = ["split"]
