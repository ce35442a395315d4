"""The private PyTorch API that this pack uses."""

from __future__ import annotations

from torch._lobpcg import LOBPCGAutogradFunction

__all__ = ["LOBPCGAutogradFunction"]
