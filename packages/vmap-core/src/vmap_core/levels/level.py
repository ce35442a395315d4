"""`Level`: one active vmap, kept on PyTorch's own thread-local mode stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from torch.overrides import TorchFunctionMode

from ..errors import RandomnessError, function_name, user_location
from ..torch_compat.autocast import is_autocast_enabled
from ..torch_compat.mode_stack import mode_at, pop_mode, push_mode, stack_size
from .presence import presence


def call(level: Level, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one call at a level that has been taken off the stack.

    Args:
        level: the innermost level.
        func: what was called: a builtin, a method of Tensor, a Python function, an ``OpOverload``.
        args: its positional arguments, BatchedTensors among them.
        kwargs: its keyword arguments.
    """
    run = level.ways.get(func)
    return call_by_types(func, level, args, kwargs) if run is None else run(level, args, kwargs)


def call_by_types(func: Any, level: Level, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do so by the plan for the types of the arguments."""
    if kwargs:
        key: Any = (func, *map(type, args), *kwargs, *map(type, kwargs.values()))
    else:
        key = (func, type(args[0]), type(args[1])) if len(args) == 2 else (func, *map(type, args))
    plan = level.plans.get(key)
    if plan is None:
        if not level.active and not level.plans:  # an interrupt has left it on the stack (see `transform.vmap`)
            return func(*args, **kwargs)
        plan = level.table.make(level, key, func, args, kwargs)
    return plan(level, args, kwargs)


class pushed:
    """Runs a block with a level on the stack again.

    Note [Contexts that change the stack] are classes: where an interrupt keeps a block from running, the generator of
    a contextmanager would be closed, and change the stack back, after the vmap around has put everything right.
    """

    def __init__(self, level: Level) -> None:
        self.level = level

    def __enter__(self) -> None:
        """Put it on the stack."""
        push_mode(self.level)

    def __exit__(self, *exc: object) -> None:
        """Take it off."""
        pop_mode()


def current_levels() -> list[Level]:
    """Return the active levels of this thread, outermost first."""
    modes = (mode_at(i) for i in range(stack_size()))
    return [mode for mode in modes if type(mode) is Level]


if TYPE_CHECKING:
    from ..rulekit.rule import Table

NO_KWARGS: dict[str, Any] = {}  # of the calls without keyword arguments

Randomness = Literal["error", "same", "different"]


class Level(TorchFunctionMode):
    """One active vmap. Rules receive it as ``info``.

    PyTorch hands every overridable call to the innermost mode, with that mode taken off the stack. So a rule
    runs one level further out, and its physical calls meet the next level, or plain PyTorch, by themselves.

    Attributes:
        batch_size: number of samples.
        randomness: ``"error"``, ``"same"`` or ``"different"``.
        table: the rules in force.
        plans: the table's plans, one lookup closer; under autocast, its plans for that.
        ways: the table's ways to them, by function (see `dispatch.ways`); under autocast, its ways to those.
        autocast: whether they are.
        func: the mapped function, or the level's name.
        depth: number of modes outside this one.
        active: False once the vmap has returned.
        dispatch_keys: the dispatcher's state as door 1 sees it, above autograd, so that physical operations which come
            from the engine are recorded; set while tensors are lowered (see `dispatch.lowering`).
        inputs: the arguments of the mapped function, flat.
        seen: the storages of inputs in which samples see each other; None before the first write (see `levels.sharing`).
        rows: of a level for some of the samples of others, which ones, by level; and tensors of those that it has met,
            with what they are here (see `dispatch.rows`).
        gathered: the views at places that differ from sample to sample (see `dispatch.gathered`).
        modes: what is on the stack outside a lowered call, outermost first; set meanwhile.
        swapped: modules that have other parameters and buffers meanwhile (see `transform.swapping`).
        part: lets samples part where a read gives them different answers (see `levels.read`); None where that is an error.
        met: told of each tensor that is narrowed to a level's samples when it is used (see `dispatch.rows`).
    """

    dispatch_keys: Any = None
    modes: Sequence[Any] = ()
    gathered: Sequence[Any] = ()
    swapped: tuple[Any, ...] = ()
    inputs: Sequence[Any] = ()
    seen: set[int | None] | None = None
    part: Callable[..., Any] | None = None
    met: Callable[[Any], None] | None = None
    rows: dict[Level, Any] = {}  # noqa: RUF012  # no level's own
    narrowed: dict[int, tuple[Any, Any, Any]]

    def __init__(self, batch_size: int, randomness: Randomness, table: Table, func: Any = "vmap") -> None:
        """Make a level, for a mapped function or its name; it becomes active when it is pushed."""
        self.batch_size = batch_size
        self.randomness = randomness
        self.table = table
        self.autocast = autocast = is_autocast_enabled()  # as look_at_autocast, without a call
        self.plans = table.autocast_plans if autocast else table.plans
        self.ways = table.autocast_ways if autocast else table.ways
        self.func = func
        self.active = True
        self.depth = stack_size()

    @property
    def is_one(self) -> bool:
        """Whether there is one sample, so that what is outside the function is that sample's."""
        return self.batch_size == 1 and not self.rows

    def look_at_autocast(self) -> None:
        """Take the plans for the state of autocast in this thread."""
        self.autocast = is_autocast_enabled()
        self.plans = self.table.autocast_plans if self.autocast else self.table.plans
        self.ways = self.table.autocast_ways if self.autocast else self.table.ways

    @property
    def name(self) -> str:
        """What messages call this level; made when asked for, since the repr of a module takes long."""
        if hasattr(self.func, "named_modules"):  # a module's own text may be long
            return type(self.func).__name__
        return self.func if isinstance(self.func, str) else function_name(self.func)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one overridable call (door 1); PyTorch has taken this level off the stack."""
        run = self.ways.get(func)
        if run is None:
            return call_by_types(func, self, args, kwargs or NO_KWARGS)
        return run(self, args, kwargs or NO_KWARGS)

    def __enter__(self) -> Level:
        """Make this the innermost level."""
        presence.enter(self)
        push_mode(self)
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the level; tensors that escaped it are dead from here on."""
        self.active = False
        self.gathered = ()
        pop_mode()
        presence.leave(self)

    def __repr__(self) -> str:
        """Name the mapped function and the batch size."""
        return f"<vmap level of {self.name!r}, batch size {self.batch_size}>"

    def pushed(self) -> AbstractContextManager[None]:
        """Return a context with this level on the stack again, for a rule that computes on BatchedTensors."""
        return pushed(self)

    def require_randomness(self, op: object) -> None:
        """Raise unless random operations are allowed at this level."""
        if self.rows and self.randomness == "same":
            raise RandomnessError(
                f"vmap: {op}, called at {user_location()} in a branch that not all samples take, under randomness='same': samples "
                f"that go another way would go on with other numbers than in the loop. Instead: draw before the branch, or say "
                f"randomness='different'."
            )
        if self.randomness == "error":
            raise RandomnessError(
                "vmap: called random operation while in randomness error mode. Please either use the 'same' or "
                f"'different' randomness flags on vmap or perform the randomness operation out of vmap. "
                f"The operation was {op}, called at {user_location()}."
            )
