"""Operators by their names; one that this version of PyTorch does not have is a `Missing`, which no pack takes in."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._library.custom_ops import OPDEFS, CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket


def has_kernel(op: OpOverload, key: str) -> bool:
    """Tell whether an overload has a kernel for a dispatch key, such as ``"AutocastCPU"``."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key))


def is_composite(op: OpOverload) -> bool:
    """Tell whether an overload is made of others, which autograd and rules see; else it is a kernel of its own."""
    return has_kernel(op, "CompositeImplicitAutograd")


def overloads(namespace: str = "aten") -> Iterator[Any]:
    """Yield the operators of a namespace that have kernels."""
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        space, _, rest = full.partition("::")
        if space != namespace or not torch._C._dispatch_has_kernel(full):
            continue
        name, _, overload = rest.partition(".")
        try:
            yield getattr(getattr(getattr(torch.ops, space), name), overload or "default")
        except (AttributeError, RuntimeError):  # only TorchScript knows it
            continue


def is_leaf(op: OpOverload) -> bool:
    """Tell whether an overload has a kernel of its own, so that it is run per sample rather than taken apart."""
    return not is_composite(op)


def decomposition_of(op: OpOverload, prims: bool = False) -> Callable[..., Any] | None:
    """Return the body in other operators that PyTorch knows for an overload, if it knows one.

    Args:
        op: the overload.
        prims: also a body of ``torch._refs``, which ends in prims.
    """
    body = decomposition_table.get(op)
    return None if body is None or (not prims and body.__module__.startswith("torch._refs")) else body


def definition_of(op: OpOverload) -> Any:
    """Return what ``torch.library.custom_op`` made of an operator's function, if that is where it comes from."""
    return OPDEFS.get(op._schema.name)


# Python names whose ATen name differs.
_ALIASES = {
    "__getitem__": None, "__setitem__": None, "__and__": "__and__", "true_divide": "true_divide",
}  # fmt: skip


def packet_of(func: Any) -> OpOverloadPacket | None:
    """Return the ATen operator a builtin function or method of PyTorch is bound to, by its name."""
    name = getattr(func, "__name__", None)
    if name is None or _ALIASES.get(name, name) is None:
        return None
    packet = getattr(torch.ops.aten, name, None)
    return packet if isinstance(packet, OpOverloadPacket) else None


def overloads_of(packet: OpOverloadPacket) -> list[OpOverload]:
    """Return an operator's overloads; some that only TorchScript knows have none to call."""
    found = []
    for name in packet.overloads():
        try:
            overload = getattr(packet, name)
        except (AttributeError, RuntimeError):
            continue
        if torch._C._dispatch_has_kernel(overload.name()):
            found.append(overload)
    return found


def is_random(func: Any) -> bool:
    """Tell whether a function may draw random numbers."""
    packet = func if isinstance(func, OpOverloadPacket) else packet_of(func)
    if isinstance(func, OpOverload):
        return RANDOM in func.tags
    return packet is not None and any(RANDOM in o.tags for o in overloads_of(packet))


RANDOM = torch.Tag.nondeterministic_seeded

__all__ = [
    "RANDOM", "CustomOpDef", "Missing", "OpOverload", "OpOverloadPacket", "aten", "decomposition_of", "definition_of",
    "find", "has_kernel", "is_composite", "is_leaf", "is_random", "overloads", "overloads_of", "packet_of",
]  # fmt: skip


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
