"""What is replaced in PyTorch, and why."""

from . import guards
from .registry import Patch, install_all, patches

__all__ = ["Patch", "guards", "install_all", "patches"]
