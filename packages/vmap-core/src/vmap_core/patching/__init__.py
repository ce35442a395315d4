"""What is replaced in PyTorch, and why."""

from . import collectives, compiler, guards, seeds
from .registry import Patch, install_all, patches

__all__ = ["Patch", "collectives", "compiler", "guards", "install_all", "patches", "seeds"]
