"""Python's and NumPy's random numbers in a mapped function: drawn once, where the loop draws for every sample.

They are numbers and no tensors, so nothing tells when one is drawn; but the states of the generators tell that one was.
Reading these takes longer than a small vmap does, so it is done when a function is mapped for the first time.
"""

from __future__ import annotations

import functools
import pickle
import random
import sys
import threading
import warnings
from typing import Any

from ..errors import RandomnessError, RandomnessWarning, function_name, user_location
from ..levels.sharing import values_around

looked_at: dict[int | None, Any] = {None: None}
"""The code of functions that were looked at, by id, so that looking one up takes no time; None for "not to be"."""
_ROOM = 4096


def code_of(func: Any) -> Any:
    """Return what a mapped function runs: its code, or the class of a callable that has none."""
    while isinstance(func, functools.partial):
        func = func.func
    return getattr(func, "__code__", None) or type(func)


class FirstCall:
    """Looks at the generators before and after a mapped function runs for the first time."""

    def __init__(self, func: Any, code: Any) -> None:
        self.func, self.code = func, code
        self.before = _states(func)

    def checked(self, out: Any) -> Any:
        """Return the results; the function is known from now on.

        Raises:
            RandomnessError: it has drawn from a generator of Python's or NumPy's, the global one or one that it names.
                Where other threads run, which may have drawn themselves, this is a `RandomnessWarning`.
        """
        moved = [name for name, state in _states(self.func).items() if self.before.get(name, state) != state]
        if moved:
            text = (
                f"vmap: {function_name(self.func)!r}, mapped at {user_location()}, has drawn from {moved[0]}. It runs once for "
                f"all samples, so they share the number, where the loop draws one for each. Instead: use torch.rand and its "
                f"like, with randomness='different'; or draw outside, and pass the numbers in; or say randomness='same'."
            )
            if threading.active_count() == 1:
                raise RandomnessError(text)
            warnings.warn(f"{text} (Unless another thread has drawn meanwhile.)", RandomnessWarning, stacklevel=3)
        if len(looked_at) > _ROOM:
            looked_at.clear()
            looked_at[None] = None
        looked_at[id(self.code)] = self.code
        return out


def _states(func: Any) -> dict[str, Any]:
    """Return the states of the global generators, and of those that the function names."""
    found: dict[str, Any] = {"Python's random": random.getstate()}
    kinds: tuple[type, ...] = (random.Random,)
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        name, keys, *rest = numpy.get_state()
        found["numpy.random"] = (name, keys.tobytes(), *rest)
        kinds = (random.Random, numpy.Generator, numpy.RandomState)
    for value in values_around(func):
        if isinstance(value, kinds):
            found[f"a {type(value).__name__}"] = pickle.dumps(value)
    return found
