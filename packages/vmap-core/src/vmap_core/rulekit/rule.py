"""Rules, rule packs, and the table the dispatcher looks rules up in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

from ..errors import PackConflictError, UnsupportedError, function_name, user_location
from ..torch_compat.operators import (
    CustomOpDef,
    Missing,
    NamedOverload,
    OpOverload,
    OpOverloadPacket,
    full_name,
    overload_of,
)
from ..torch_compat.state import initial_state
from .asking import asking
from .keeping import keep
from .leading import Leading

RuleFunction = Callable[..., Any]
Kind = Literal["physical", "logical"]
KINDS = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, and what the dispatcher may know of it to reach the same result in fewer steps.

    Makers of rules return one, decorators such as `by_shape` make one of a function; it is called as its function is.

    Attributes:
        function: the rule. Kind ``"physical"``: ``(info, in_dims, *args, **kwargs) -> (output, out_dims)`` on
            physical values. Kind ``"logical"``: ``(info, *args, **kwargs) -> output`` on the tensors as the
            mapped function holds them.
        kind: see above.
        pack: the name of the pack it came from.
        override: whether it may replace another pack's rule.
        agreeing: the one call that the rule makes where its tensors agree: of one rank, their batch dims at one place.
        leading: the one call that it makes where one of its tensors is batched, in front, and all samples share the others.
        in_front: what it gives for a tensor ``value`` with the batch dim in front, and other arguments ``a1``, ...: an
            expression in Python, by their types.
        joining: the one call that it makes for a list of tensors with their batch dims in front, and a dim.
        by_shape: a physical rule that looks at nothing but shapes, and does what this one does where it does not raise.
        inplace_method: the method of Tensor that an elementwise operator which writes to its first argument is.
        may_return_self: whether the result may be the very tensor that the operator got.
        when: tells by the types of arguments which calls of a function the rule is for; None: all.
    """

    function: RuleFunction
    kind: Kind = "physical"
    pack: str = ""
    override: bool = False
    agreeing: Callable[..., Any] | None = None
    leading: tuple[Leading, ...] = ()
    in_front: Mapping[tuple[type, ...], str] | None = None
    joining: Callable[..., Any] | None = None
    by_shape: RuleFunction | None = None
    inplace_method: str | None = None
    may_return_self: bool = False
    when: Callable[[Any, Any], bool] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    @property
    def place(self) -> str:
        """Where the rule is, as ``module.function``."""
        return f"{self.function.__module__}.{function_name(self.function)}"


def may_return_self(function: RuleFunction) -> Rule:
    """Mark the rule of an operator whose result may be the very tensor that it got, as ``x.to(x.dtype)`` is ``x``."""
    return Rule(function, may_return_self=True)


@dataclass(slots=True)
class Entry:
    """A rule as it was entered.

    Attributes:
        op: the operator.
        pack: the name of the pack.
        kind: the kind of the rule, if it is not to be the rule's own.
        override: whether it may replace another pack's rule.
        given: the rule, or the function that is one; None where a family makes it.
        family: makes the rule, given the operator.
        asks: whether its operator is asked first (see `vmap_core.rulekit.asking`).
        made: the rule, once it has been asked for.
    """

    op: Any
    pack: str
    kind: Kind | None
    override: bool
    given: RuleFunction | Rule | None = None
    family: Callable[[Any], RuleFunction | Rule] | None = None
    asks: bool = False
    made: Rule | None = None

    def complete(self) -> Rule:
        """Return the rule, made when it is first asked for."""
        if self.made is None:
            rule: Any = self.given
            if self.family is not None:
                with initial_state():  # as if it had been made when the pack was loaded
                    rule = self.family(overload_of(self.op))
            rule = rule if isinstance(rule, Rule) else Rule(rule)
            rule = replace(rule, kind=self.kind or rule.kind, pack=self.pack, override=self.override)
            if self.asks:
                run = asking(rule.function, overload_of(self.op), rule.kind == "logical")
                rule = replace(
                    rule, function=run, agreeing=None, by_shape=None, leading=(), joining=None, in_front=None
                )
            self.made = rule
        return self.made


class Rules(Mapping[Any, Rule]):
    """Rules by operator. See Note [Operators are looked up late]: so are rules that families make.

    Attributes:
        entries: by the operator's full name, or by the Python or builtin function itself.
    """

    def __init__(self) -> None:
        """Have no rules."""
        self.entries: dict[Any, Entry] = {}

    def __getitem__(self, op: Any) -> Rule:
        """Return an operator's rule."""
        return self.entries[full_name(op) or op].complete()

    def __contains__(self, op: object) -> bool:
        """Tell whether there is a rule for an operator."""
        return (full_name(op) or op) in self.entries

    def __iter__(self) -> Iterator[Any]:
        """Go through the operators, as they are given to rules."""
        return (overload_of(entry.op) for entry in self.entries.values())

    def __len__(self) -> int:
        """Count rules, those that are still to be made among them."""
        return len(self.entries)


def checked_operator(op: Any) -> Any:
    """Return what a rule is for: an overload, or the Python or builtin function itself.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(op, CustomOpDef):
        return op._opoverload
    if isinstance(op, OpOverloadPacket):
        raise TypeError(f"rules are given per overload: name one of {[f'{op}.{o}' for o in op.overloads()]}")
    if not callable(op):
        raise TypeError(f"expected an operator overload or a function, got {op!r}")
    return op


class RulePack:
    """A named set of batching rules, shipped by one distribution.

    Args:
        name: the pack's name; by convention the entry point's, and the stem of the distribution's.

    Examples:
        >>> import torch
        >>> from vmap_core.extend import RulePack
        >>> pack = RulePack("acme")
        >>> @pack.rule(torch.ops.aten.trunc.default)
        ... def trunc(info, in_dims, x):
        ...     return torch.trunc(x), in_dims[0]
        >>> pack
        <RulePack 'acme', 1 rules>
    """

    def __init__(self, name: str) -> None:
        """Make an empty pack."""
        self.name = name
        self.rules = Rules()
        self.missing: set[str] = set()

    def __repr__(self) -> str:
        """Show the name and the number of rules."""
        return f"<RulePack {self.name!r}, {len(self.rules)} rules>"

    def add(self, op: Any, rule: RuleFunction | Rule, *, kind: Kind | None = None, override: bool = False) -> None:
        """Enter a rule for an operator: a function of a kind, by default "physical", or a `Rule`.

        One that this version of PyTorch does not have (see `vmap_core.extend.aten`) is left out.

        Raises:
            PackConflictError: the pack has a rule for it already.
            ValueError: there is no such kind.
        """
        own = rule.kind if isinstance(rule, Rule) else "physical"
        if (own if kind is None else kind) not in KINDS:
            raise ValueError(f"the kind of a rule is one of {KINDS}, not {kind or own!r} (for {op} in {self.name!r})")
        self._enter(op, kind, override, given=rule)

    def _enter(self, op: Any, kind: Kind | None, override: bool, **given: Any) -> None:
        if isinstance(op, Missing):
            self.missing.add(op.__name__)
            return
        op = checked_operator(op)
        key = full_name(op) or op
        if key in self.rules.entries:
            raise PackConflictError(f"pack {self.name!r} already has a rule for {op}")
        self.rules.entries[key] = Entry(op, self.name, kind, override, **given)

    def rule(self, *ops: Any, override: bool = False) -> Callable[[RuleFunction], RuleFunction]:
        """Decorate a batching rule ``(info, in_dims, *args, **kwargs) -> (output, out_dims)``.

        Args:
            ops: overloads (``torch.ops.aten.mm.default``), custom operators, or overridable functions of PyTorch.
            override: the rule replaces another pack's rule for the same operator.
        """

        def decorate(function: RuleFunction) -> RuleFunction:
            for op in ops:
                self.add(op, function, override=override)
            return function

        return decorate

    def composite(self, *ops: Any, override: bool = False) -> Callable[[RuleFunction], RuleFunction]:
        """Decorate a body ``(*args, **kwargs) -> output`` that says an operator in other operations."""

        def decorate(body: RuleFunction) -> RuleFunction:
            def composite(info: Any, *args: Any, **kwargs: Any) -> Any:
                with info.pushed():
                    return body(*args, **kwargs)

            composite.__name__, composite.__module__ = body.__name__, body.__module__
            for op in ops:
                self.add(op, composite, kind="logical", override=override)
            return body

        return decorate

    def logical(
        self, *ops: Any, override: bool = False, when: Callable[[Any, Any], bool] | None = None
    ) -> Callable[[RuleFunction], RuleFunction]:
        """Decorate a rule ``(info, *args, **kwargs) -> output`` that handles the BatchedTensors itself.

        Args:
            ops: overloads or functions of PyTorch.
            override: the rule replaces another pack's rule for the same operator.
            when: of functions, given ``args`` and ``kwargs``: whether the rule is for calls with arguments of these types.
        """

        def decorate(function: RuleFunction) -> RuleFunction:
            for op in ops:
                self.add(op, Rule(function, when=when), kind="logical", override=override)
            return function

        return decorate

    def family(self, make: Callable[[Any], RuleFunction | Rule], *ops: Any, override: bool = False) -> None:
        """Enter ``make(op)`` for each operator: one line for operators that one family of rules fits.

        For operators that are only named, it is called when the rule is first asked for.
        """
        for op in ops:
            if type(op) is NamedOverload:
                self._enter(op, None, override, family=make)
            elif isinstance(op, Missing):
                self.missing.add(op.__name__)
            else:
                self.add(op, make(checked_operator(op)), override=override)

    def ask(self, *ops: Any) -> None:
        """Let rules of this pack refuse what their operators refuse: each is asked, once for every signature of a sample."""
        for op in ops:
            if not isinstance(op, Missing):
                self.rules.entries[full_name(op) or op].asks = True

    def refuse(self, *ops: Any, reason: str) -> None:
        """Enter a rule that raises UnsupportedError with a reason, and what to do instead."""

        def refuse(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
            raise UnsupportedError(f"vmap: {reason} (called at {user_location()})")

        for op in ops:
            self.add(op, refuse)


class Table:
    """All rules of the chosen packs, and the plans the dispatcher made from them.

    Attributes:
        rules: those of its packs, by operator.
        plans: call signature -> what runs such calls.
        autocast_plans: those under autocast.
        ways: function -> what runs its calls: lines that look at the types of the arguments, before they are looked up.
        autocast_ways: those under autocast.
        checks: whether what this project's own rules return is checked, too.
        likes: tables with the same rules and plans of their own, by class (see `TableLike.of`).
        make: plans a call, ``(level, key, func, args, kwargs) -> what runs it``. The planner, which knows all ways to run a
            call and so is far above, sets it when it is imported.
    """

    make: ClassVar[Callable[..., Any]]

    def __init__(self, packs: Iterable[RulePack], checks: bool = False) -> None:
        """Merge packs.

        Raises:
            PackConflictError: two packs have a rule for one operator and neither, or both, override.
        """
        self.packs = list(packs)
        self.checks = checks
        self._checked: Table | None = None
        self.likes: dict[type[TableLike], Any] = {}
        self.rules = Rules()
        self.plans: dict[Any, Callable[..., Any]] = {}
        self.autocast_plans: dict[Any, Callable[..., Any]] = {}
        self.ways: dict[Any, Callable[..., Any]] = {}
        self.autocast_ways: dict[Any, Callable[..., Any]] = {}
        entries = self.rules.entries
        for pack in self.packs:
            for key, entry in pack.rules.entries.items():
                old = entries.get(key)
                if old is not None and old.override == entry.override:
                    raise PackConflictError(
                        f"packs {old.pack!r} and {entry.pack!r} both have a rule for {entry.op}; choose packs with the "
                        f"VMAP_PACKS environment variable or vmap_core.use_packs(), or let one declare override=True"
                    )
                if old is None or entry.override:
                    entries[key] = entry

    def enter(self, plans: dict[Any, Any], key: Any, plan: Any) -> Callable[..., Any]:
        """Keep what runs the calls of a signature among ``plans``, and return what runs the first of them."""
        run = self.run_of(key, plan.run, plan.served)
        if plan.first is None:
            keep(plans, key, run)
            return run
        check = self.run_of(key, plan.first, plan.served)

        def first(level: Any, args: Any, kwargs: Any) -> Any:
            out = check(level, args, kwargs)
            keep(plans, key, run)
            return out

        return first

    def run_of(self, key: Any, run: Callable[..., Any], served: Any) -> Callable[..., Any]:
        """Return what runs the calls of a signature; a table that is traced watches it."""
        return run

    def checked(self) -> Table:
        """Return the table of the same packs that checks all rules."""
        if self.checks:
            return self
        if self._checked is None:
            self._checked = Table(self.packs, checks=True)
        return self._checked

    def rule(self, op: Any) -> Rule | None:
        """Return the rule entered for an operator, if there is one."""
        try:
            known = op in self.rules
        except TypeError:  # an unhashable callable
            return None
        return self.rules[op] if known else None


class TableLike(Table):
    """A table with the rules of another one, whose `run_of` adds something to what runs a call.

    Attributes:
        other: the table that it has its rules from.
    """

    def __init__(self, other: Table) -> None:
        """Take the rules over; the plans are made anew."""
        self.packs, self.rules, self.checks, self.other = other.packs, other.rules, other.checks, other
        self.plans, self.autocast_plans, self._checked, self.likes = {}, {}, None, {}
        self.ways, self.autocast_ways = {}, {}

    @classmethod
    def of(cls, other: Table) -> Self:
        """Return the table of this class for another one; it is made once."""
        like: Self | None = other.likes.get(cls)
        if like is None:
            like = other.likes[cls] = cls(other)
        return like


def is_mutable(op: OpOverload) -> bool:
    """Tell from the schema whether an overload writes to an argument."""
    return op._schema.is_mutable
