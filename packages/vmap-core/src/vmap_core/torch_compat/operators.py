"""Operators by their names; one that this version of PyTorch does not have is a `Missing`, which no pack takes in."""

from __future__ import annotations

import importlib
from typing import Any

import torch


class Missing:
    """An operator or function that this version of PyTorch does not have.

    A `RulePack` leaves it out and notes its name; whatever is asked of it is missing too.
    """

    def __init__(self, name: str) -> None:
        """Stand for what is called so: ``"aten.cholesky.default"``."""
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        """Return an overload, which is missing too."""
        if name.startswith("_"):
            raise AttributeError(f"PyTorch {torch.__version__} has no {self.__name__}")
        return Missing(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Say that there is nothing to be called."""
        raise NotImplementedError(f"PyTorch {torch.__version__} has no {self.__name__}")

    def __bool__(self) -> bool:
        """Be false."""
        return False

    def __eq__(self, other: object) -> bool:
        """Be the same as what is missing under the same name."""
        return isinstance(other, Missing) and other.__name__ == self.__name__

    def __hash__(self) -> int:
        """Hash by the name."""
        return hash(self.__name__)

    def __repr__(self) -> str:
        """Show the name."""
        return f"<missing {self.__name__}>"

    def overloads(self) -> list[str]:
        """Return no names, as there are none."""
        return []


class _Packet:
    """An operator, for its overloads: ``aten.add.Tensor``."""

    def __init__(self, packet: Any) -> None:
        self._packet = packet
        self.__name__ = packet.__name__

    def __getattr__(self, name: str) -> Any:
        """Return an overload, or what else the operator has."""
        packet = self._packet
        found = getattr(packet, name) if hasattr(packet, name) else Missing(f"{packet}.{name}")
        self.__dict__[name] = found
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the operator: PyTorch chooses the overload."""
        return self._packet(*args, **kwargs)


class _Library:
    """A library's operators."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        """Return an operator."""
        packet = getattr(getattr(torch.ops, self._name), name, None)
        found = Missing(f"{self._name}.{name}") if packet is None else _Packet(packet)
        self.__dict__[name] = found
        return found


aten: Any = _Library("aten")
"""PyTorch's operators, for rules: as ``torch.ops.aten``, but what this version lacks is a `Missing`."""


def find(name: str) -> Any:
    """Return a function of PyTorch by its full name; a `Missing` if this version does not have it.

    Args:
        name: such as ``"torch.nn.functional.linear_cross_entropy"``.

    Examples:
        >>> find("torch.nn.functional.relu").__name__, find("torch.no_such_function")
        ('relu', <missing torch.no_such_function>)
    """
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute, Missing(name))
