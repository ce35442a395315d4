"""What is replaced in PyTorch, and why."""

from . import collectives, guards, seeds
from .registry import Patch, install_all, patches

__all__ = ["Patch", "collectives", "guards", "install_all", "patches", "seeds"]
