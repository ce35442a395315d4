"""Errors for what has no rule."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError, user_location
from ..rulekit.packs import source


def unsupported(name: str, advice: str) -> UnsupportedError:
    """Make the error for an entry point that has no rule."""
    return UnsupportedError(f"vmap: {name} on a batched tensor, at {user_location()}. {advice}.")


def needs_vmap_autograd(name: str, what: str = "Gradients") -> UnsupportedError:
    """Make the error for an entry point whose rule comes with vmap-autograd."""
    return unsupported(name, f"{what} inside a mapped function come with {source('vmap-autograd')}")


def needs_autograd(func: Any) -> Any:
    """Make what runs a call to autograd that no pack has a rule for."""
    name = func.__qualname__ if hasattr(func, "__qualname__") else func.__name__

    def plan(level: Any, args: Any, kwargs: Any) -> Any:
        raise needs_vmap_autograd(f"torch.autograd.{name}" if "." not in name else name)

    return plan
