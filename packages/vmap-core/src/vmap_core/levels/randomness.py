"""Random operations: which calls draw numbers, and the generators they draw from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..errors import RandomnessError, user_location
from ..torch_compat.operators import RANDOM, OpOverload, is_composite
from .containers import leaves
from .recording import current, unrecorded


def draws(op: Any, args: Any = (), kwargs: Any = None) -> bool:
    """Tell whether a call draws random numbers: dropout in eval mode, or with p=0, does not.

    Args:
        op: an overload.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    if not isinstance(op, OpOverload) or RANDOM not in op.tags:
        return False
    if "dropout" not in str(op._schema) and "rrelu" not in op._schema.name:
        return True
    given = dict(zip((a.name for a in op._schema.arguments), args, strict=False))
    given.update(kwargs or {})
    for a in op._schema.arguments:
        if a.has_default_value():
            given.setdefault(a.name, a.default_value)
    if given.get("train", True) is False or given.get("training", True) is False:
        return False
    if given.get("dropout_p", 1) == 0 or given.get("dropout", 1) == 0:
        return False
    chance = given.get("p", 0.5)
    composite = is_composite(op)
    return not (composite and isinstance(chance, int | float) and chance in (0, 1))


def generators(args: Any) -> list[Any]:
    """Return the generators that a call may draw from: the one given, or the default ones of its devices."""
    flat = list(leaves(args))
    explicit = [a for a in flat if isinstance(a, torch.Generator)]
    if explicit:
        return explicit
    found = [torch.default_generator]
    for device in {a if isinstance(a, torch.device) else a.device for a in flat if _has_device(a)}:
        if device.type in ("cpu", "meta"):
            continue
        module = torch.get_device_module(device.type)
        defaults = getattr(module, "default_generators", ())
        index = device.index if device.index is not None else module.current_device()
        if index < len(defaults):
            found.append(defaults[index])
    return found


def _has_device(a: Any) -> bool:
    return isinstance(a, torch.Tensor | torch.device)


@contextlib.contextmanager
def rewinding(args: Any) -> Iterator[Callable[[], None]]:
    """Yield a function that takes the generators of a call back to where they stood before it."""
    states = [(g, generator_state(g)) for g in generators(args)]

    def rewind() -> None:
        for generator, state in states:
            set_generator_state(generator, state)

    yield rewind


def generator_state(generator: torch.Generator) -> torch.Tensor:
    """Return a generator's state."""
    state: torch.Tensor = _recorded(torch.Generator.get_state, generator)
    return state


def set_generator_state(generator: torch.Generator, state: torch.Tensor) -> None:
    """Set a generator's state."""
    _recorded(torch.Generator.set_state, generator, state)


def _recorded(method: Callable[..., Any], *args: Any) -> Any:
    """Call a generator's method, also in the program that is being captured."""
    recorder = current()
    return method(*args) if recorder is None else recorder.generator_call(method, *args)


def snapshot(args: Any) -> list[tuple[torch.Generator, torch.Tensor]]:
    """Return the generators that a call may draw from, with their states, for `drawn`; none inside a CUDA graph."""
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return []
    with unrecorded():
        return [(g, g.get_state()) for g in generators(args)]


def drawn(before: list[tuple[torch.Generator, torch.Tensor]]) -> bool:
    """Tell whether numbers have been drawn since a snapshot."""
    with unrecorded():
        return any(not torch.equal(g.get_state(), state) for g, state in before)


def may_draw_unannounced(op: Any) -> bool:
    """Tell whether an operator may draw though its tags do not say so: PyTorch's own do say so."""
    return isinstance(op, OpOverload) and op.namespace not in ("aten", "prims") and RANDOM not in op.tags


def refuse_unannounced(level: Any, op: Any, refused: str) -> None:
    """Complain of an operator that has drawn without saying so.

    Args:
        level: the running level.
        op: the operator.
        refused: the randomness that the way it ran does not give: "same" for a loop, "different" for one call.

    Raises:
        RandomnessError: the level's randomness is that, or "error".
    """
    level.require_randomness(op)
    if level.randomness == refused:
        how = "others for each sample" if refused == "same" else "the same for all samples"
        raise RandomnessError(
            f"vmap: {op} draws random numbers, {how}, under randomness={refused!r}, at {user_location()}. Instead: tag it "
            f"torch.Tag.nondeterministic_seeded where it is defined, so that vmap knows."
        )
