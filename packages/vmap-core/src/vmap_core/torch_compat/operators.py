"""Operators by their names; one that this version of PyTorch does not have is a `Missing`, which no pack takes in."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType
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


def overload_names(beginning: str) -> list[str]:
    """Return the names of the overloads of a library that begin so, without the library: ``"add.Tensor"``."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.partition("::")[2] for name in names if name.startswith(beginning))


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
    "RANDOM", "CustomOpDef", "Missing", "NamedOverload", "OpOverload", "OpOverloadPacket", "aten", "decomposition_of", "definition_of",
    "find", "full_name", "has_kernel", "is_composite", "is_leaf", "is_random", "named_aten", "overload_names", "overload_of", "overloads", "overloads_of", "packet_of",
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


class NamedOverload:
    """An overload of which only the name is known; it is the overload as soon as something is asked of it.

    Note [Operators are looked up late]: PyTorch makes an operator's object in some 70 microseconds, when it is first
    asked for, and the packs have a thousand of them. A program uses a few. So at the top of a module, where rules are
    entered, ``named_aten.add.Tensor`` is a name; in functions, which run when there is something to be done, it is the
    overload. `RulePack` takes names as they are. Whatever else is done with one at the top of a module is done with the
    overload, all but ``is``: there a module takes `aten` that passes overloads to functions, or keeps them.
    """

    __slots__ = ("_find", "_full")

    def __init__(self, full: str, find: Callable[[], OpOverload]) -> None:
        """Stand for the overload that ``find`` returns, of a name such as ``"aten::add.Tensor"``."""
        self._full = full
        self._find = find

    def __getattr__(self, name: str) -> Any:
        """Return what the overload has."""
        return getattr(self._find(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the overload."""
        return self._find()(*args, **kwargs)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Pass for an overload."""
        return OpOverload

    def __eq__(self, other: object) -> bool:
        """Be the overload."""
        return bool(self._find() == overload_of(other))

    def __hash__(self) -> int:
        """Hash as the overload."""
        return hash(self._find())

    def __repr__(self) -> str:
        """Show what the overload shows."""
        return repr(self._find())

    def __str__(self) -> str:
        """Return what the overload is called."""
        return str(self._find())


def overload_of(op: Any) -> Any:
    """Return the overload, if only its name is known; anything else as it is."""
    return op._find() if type(op) is NamedOverload else op


def full_name(op: Any) -> str | None:
    """Return the name of an overload, such as ``"aten::add.Tensor"``; None if it is something else."""
    if type(op) is NamedOverload:
        return op._full
    return op.name() if isinstance(op, OpOverload) else None


class _Packet:
    """An operator, for its overloads: ``aten.add.Tensor``."""

    def __init__(self, library: _Library, name: str) -> None:
        self._library = library
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        """Return an overload, or what else the operator has."""
        full = f"{self._library._name}::{self.__name__}" + (f".{name}" if name != "default" else "")
        if self._library._gives_names(sys._getframe(1)) and torch._C._dispatch_has_kernel(full):
            return NamedOverload(full, lambda: getattr(self, name))
        found = getattr(self._found(), name, None)
        found = Missing(f"{self}.{name}") if found is None else found
        self.__dict__[name] = found
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the operator: PyTorch chooses the overload."""
        return (self._found() or Missing(str(self)))(*args, **kwargs)

    def __bool__(self) -> bool:
        """Tell whether this version of PyTorch has the operator."""
        return self._found() is not None

    def __str__(self) -> str:
        """Return what the operator is called."""
        return f"{self._library._name}.{self.__name__}"

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Pass for what it stands for."""
        return OpOverloadPacket

    def _found(self) -> Any:
        return getattr(getattr(torch.ops, self._library._name), self.__name__, None)


class _Library:
    """A library's operators."""

    def __init__(self, name: str, late: bool = False) -> None:
        self._name = name
        self._late = late

    def __getattr__(self, name: str) -> Any:
        """Return an operator."""
        packet: Any = _Packet(self, name)
        if not self._gives_names(sys._getframe(1)) and not packet:
            packet = Missing(f"{self._name}.{name}")
        self.__dict__[name] = packet
        return packet

    def _gives_names(self, asking: FrameType) -> bool:
        """Tell whether only the name is wanted: by the code of a module, and no function."""
        return self._late and asking.f_code.co_name == "<module>"


aten: Any = _Library("aten")
"""PyTorch's operators, for rules: as ``torch.ops.aten``, but what this version lacks is a `Missing`."""

named_aten: Any = _Library("aten", late=True)
"""The same for modules that enter many rules; see Note [Operators are looked up late]."""


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


def returns_view(op: OpOverload) -> bool:
    """Tell whether an overload's results may share memory with its arguments, and it writes to none; some schemas do not say it."""
    schema = op._schema
    return not schema.is_mutable and (
        schema.name.partition("::")[2] in _SHARE_MEMORY or any(r.alias_info is not None for r in schema.returns)
    )


def may_return_argument(op: OpOverload) -> bool:
    """Tell whether an overload may return its argument, or a view of it; of what is made of others no schema says it."""
    named = op._schema.name.partition("::")[2] in _MAY_RETURN_ARGUMENT
    return named or returns_view(op) or any(r.alias_info is not None for r in op._schema.returns)


_SHARE_MEMORY = {
    "conj_physical", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "type_as", "resize_as", "_unsafe_view", "lift",
}  # fmt: skip
_MAY_RETURN_ARGUMENT = {
    "alpha_dropout", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors", "cartesian_prod", "dropout", "einsum",
    "feature_alpha_dropout", "feature_dropout", "meshgrid", "sum_to_size", "to_dense",
}  # fmt: skip
