"""Rules, rule packs, and the table the dispatcher looks rules up in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import PackConflictError, UnsupportedError, user_location
from ..torch_compat.operators import CustomOpDef, Missing, OpOverload, OpOverloadPacket

RuleFunction = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the table.

    Attributes:
        function: the rule. Kind ``"physical"``: ``(info, in_dims, *args, **kwargs) -> (output, out_dims)`` on
            physical values. Kind ``"logical"``: ``(info, *args, **kwargs) -> output`` on the tensors as the
            mapped function holds them.
        kind: see above.
        pack: the name of the pack it came from.
        override: whether it may replace another pack's rule.
    """

    function: RuleFunction
    kind: str
    pack: str
    override: bool = False


def rule_key(op: Any) -> Any:
    """Return what the table is keyed by: an ``OpOverload``, or the Python or builtin function itself."""
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
        self.rules: dict[Any, Rule] = {}
        self.missing: set[str] = set()

    def __repr__(self) -> str:
        """Show the name and the number of rules."""
        return f"<RulePack {self.name!r}, {len(self.rules)} rules>"

    def add(self, op: Any, function: RuleFunction, *, kind: str = "physical", override: bool = False) -> None:
        """Enter a rule for an operator.

        One that this version of PyTorch does not have (see `vmap_core.extend.aten`) is left out.

        Raises:
            PackConflictError: the pack has a rule for it already.
        """
        if isinstance(op, Missing):
            self.missing.add(op.__name__)
            return
        key = rule_key(op)
        if key in self.rules:
            raise PackConflictError(f"pack {self.name!r} already has a rule for {key}")
        self.rules[key] = Rule(function, kind, self.name, override)

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

    def logical(self, *ops: Any, override: bool = False) -> Callable[[RuleFunction], RuleFunction]:
        """Decorate a rule ``(info, *args, **kwargs) -> output`` that handles the BatchedTensors itself."""

        def decorate(function: RuleFunction) -> RuleFunction:
            for op in ops:
                self.add(op, function, kind="logical", override=override)
            return function

        return decorate

    def family(self, make: Callable[[Any], RuleFunction], *ops: Any, override: bool = False) -> None:
        """Enter ``make(op)`` for each operator: one line for operators that one family of rules fits."""
        for op in ops:
            if isinstance(op, Missing):
                self.missing.add(op.__name__)
                continue
            rule = make(rule_key(op))
            self.add(op, rule, kind=getattr(rule, "kind", "physical"), override=override)

    def refuse(self, *ops: Any, reason: str) -> None:
        """Enter a rule that raises UnsupportedError with a reason, and what to do instead."""

        def refuse(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> Any:
            raise UnsupportedError(f"vmap: {reason} (called at {user_location()})")

        for op in ops:
            self.add(op, refuse)


class Table:
    """All rules of the chosen packs, and the plans the dispatcher made from them.

    Attributes:
        rules: operator -> `Rule`.
        plans: call signature -> plan.
        autocast_plans: those under autocast.
        make: makes and keeps the plan of a call, ``(level, key, func, args, kwargs) -> plan``. The planner, which knows all
            ways to run a call and so is far above, sets it when it is imported.
    """

    make: ClassVar[Callable[..., Any]]

    def __init__(self, packs: Iterable[RulePack]) -> None:
        """Merge packs.

        Raises:
            PackConflictError: two packs have a rule for one operator and neither, or both, override.
        """
        self.packs = list(packs)
        self.rules: dict[Any, Rule] = {}
        self.plans: dict[Any, Callable[..., Any]] = {}
        self.autocast_plans: dict[Any, Callable[..., Any]] = {}
        for pack in self.packs:
            for op, rule in pack.rules.items():
                old = self.rules.get(op)
                if old is not None and old.override == rule.override:
                    raise PackConflictError(
                        f"packs {old.pack!r} and {rule.pack!r} both have a rule for {op}; choose packs with the "
                        f"VMAP_PACKS environment variable or vmap_core.use_packs(), or let one declare override=True"
                    )
                if old is None or rule.override:
                    self.rules[op] = rule

    def enter(self, plans: dict[Any, Any], key: Any, plan: Callable[..., Any]) -> Callable[..., Any]:
        """Keep the plan of a call signature among ``plans``, and return what is to be run."""
        plans[key] = plan
        return plan

    def rule(self, op: Any) -> Rule | None:
        """Return the rule entered for an operator, if there is one."""
        try:
            return self.rules.get(op)
        except TypeError:  # an unhashable callable
            return None


def is_mutable(op: OpOverload) -> bool:
    """Tell from the schema whether an overload writes to an argument."""
    return op._schema.is_mutable
