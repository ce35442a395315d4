"""What PyTorch's versions do not have in common: what a version lacks, written in terms of what it has."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

TRIED = {
    "torch": ("2.11", "2.12", "2.13", "2.14", "2.15"),
    "Python": ("3.11", "3.12", "3.13"),
}
"""The minor versions that the tests were run with; docs/compatibility.md has the figures."""

try:  # 2.13
    from torch._C import _skip_one_hop_torch_function as skip_one_hop
except ImportError:
    _CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")

    def skip_one_hop(func: Any, types: Any, args: Any, kwargs: Any) -> Any:  # type: ignore[misc]
        """Run the body of an overridable function: the first question whether an argument overrides it says no."""
        return _body(func)(*args, **kwargs)

    def _no(*args: Any) -> bool:
        return False

    class _Over(types.ModuleType):
        """A module under which some names are others."""

        def __init__(self, module: types.ModuleType, **names: Any) -> None:
            super().__init__(module.__name__)
            self.__dict__.update(names, _module=module)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._module, name)

    _overrides = _Over(torch.overrides, **dict.fromkeys(_CHECKS, _no))
    _torch = _Over(torch, overrides=_overrides)

    def _asks(func: Any) -> bool:
        return type(func) is types.FunctionType and not set(func.__code__.co_names).isdisjoint(_CHECKS)

    class _Globals(dict):
        """The globals of a function, as they are when looked up, but for some names."""

        def __init__(self, names: dict[str, Any], under: dict[str, Any]) -> None:
            super().__init__(names)
            self.under = under

        def __missing__(self, name: str) -> Any:
            return self.under[name]

    _bodies: dict[Any, Callable[..., Any]] = {}  # of PyTorch's own: another may die, and a copy may refer to it

    def _body(func: Any) -> Callable[..., Any]:
        """Return a copy of a function that asks no argument whether it overrides it."""
        made = _bodies.get(func)
        if made is None:
            made = _copy(func, {func})
            if str(func.__module__).partition(".")[0] == "torch":
                _bodies[func] = made
        return made

    def _copy(func: Any, seen: set[Any]) -> Any:
        code, under, cells = func.__code__, func.__globals__, func.__closure__ or ()
        parts = {
            n: under[n] for n in code.co_names if n.startswith("_") and _asks(under.get(n)) and under[n] is not func
        }
        if not _asks(func):  # one it wraps or chooses from asks: torch._jit_internal.boolean_dispatch, a patch
            inner = [c.cell_contents for c in cells]
            copies = [_copy(f, seen | {f}) if type(f) is types.FunctionType and f not in seen else f for f in inner]
            if not parts and all(a is b for a, b in zip(inner, copies, strict=True)):
                return func
            cells = tuple(map(types.CellType, copies))
        names: dict[str, Any] = {"__builtins__": under["__builtins__"], "__name__": func.__module__}
        names.update(dict.fromkeys(_CHECKS, _no))
        names.update((n, _copy(part, seen | {part})) for n, part in parts.items())  # they ask on behalf of the whole
        for name in code.co_names:
            if under.get(name) is torch or under.get(name) is torch.overrides:
                names[name] = _torch if under[name] is torch else _overrides
        made = types.FunctionType(code, _Globals(names, under), func.__name__, func.__defaults__, cells or None)
        made.__kwdefaults__ = func.__kwdefaults__
        return made

# Names of what patches replace.

APPLY_IS_PYTHON = isinstance(torch.autograd.Function.__dict__["apply"], classmethod)  # until 2.13; then C++'s
ABOUT_ALIGNMENT = [
    f"torch._C._dynamo.guards.{name}"
    for name in (
        "assert_alignment",
        "copy_if_misaligned",
        "copy_misaligned",
    )  # the third only 2.12, the second since 2.13
    if hasattr(torch._C._dynamo.guards, name)
]
ADD_BATCH_DIM = "torch._functorch.predispatch._add_batch_dim_impl"

TENSOR_PRINTING = "torch._tensor_str"  # the module that shows tensors, and reads their values for it
FX_WRAPPING = "torch.fx._symbolic_trace"  # how lines begin in fx's code that are no operations
