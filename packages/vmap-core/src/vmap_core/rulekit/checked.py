"""Rules of others: what they return is looked at, and what they raise says whose rule it was."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from torch import Tensor

from ..errors import RuleError, function_name, user_location
from ..levels.containers import children, dims_like
from ..levels.level import Level
from ..torch_compat.operators import OpOverload
from .by_shape import watched
from .packs import is_own
from .rule import Rule, RuleFunction


def checked(rule: Rule, op: Any, own: bool = False) -> Rule:
    """Return a rule that checks what its function returns, and adds a note to what that raises.

    Args:
        rule: the rule.
        op: the operator or function that it is for.
        own: check the rules of this project's packs, too; their errors carry no note, since users cause most of them.
    """
    foreign = not is_own(rule.pack)
    if not foreign and not own:
        return rule
    function, physical = rule.function, rule.kind == "physical"
    whose = f"the batching rule {_place(function)} of {_named(op)}, in pack {rule.pack!r}"
    outputs = _outputs(op)
    one = physical and outputs in (None, 1)

    @functools.wraps(function)
    def run(info: Level, *args: Any, **kwargs: Any) -> Any:
        try:
            result = function(info, *args, **kwargs)
        except Exception as error:
            if foreign:
                note(error, whose)
            raise
        if one and type(result) is tuple and len(result) == 2:  # what is commonest, for speed
            out, dim = result
            if type(out) is Tensor and type(dim) is int and 0 <= dim < out.ndim and out.size(dim) == info.batch_size:
                return result
        return well_formed(result, info, whose, outputs) if physical else result

    return replace(rule, function=run, by_shape=rule.by_shape and watched(rule.by_shape))


def run_rule(function: RuleFunction, name: str, level: Level, in_dims: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Run a rule that a function or class in Python has brought along, and check it in the same way.

    Args:
        function: the rule.
        name: what has brought it.
        level: the running level, off the stack.
        in_dims: the batch dims of the arguments.
        args: physical arguments.
        kwargs: physical keyword arguments.

    Returns:
        The output and its batch dims.

    Raises:
        RuleError: it returned something else.
    """
    whose = f"the batching rule {_place(function)} of {name}"
    try:
        result = function(level, in_dims, *args, **kwargs)
    except Exception as error:
        of_core = getattr(function, "__module__", "").startswith("vmap_core.")
        if not of_core:  # the loop of sequential_vmap, which runs the user's function
            note(error, whose)
        raise
    return well_formed(result, level, whose)


def note(error: Exception, whose: str) -> None:
    """Add to an exception whose rule raised it; the rules that called that one add nothing."""
    if not any(line.startswith(_RAISED) for line in getattr(error, "__notes__", ())):
        error.add_note(f"{_RAISED}{whose}")


_RAISED = "vmap: raised in "


def well_formed(result: Any, level: Level, whose: str, outputs: int | None = None) -> tuple[Any, Any]:
    """Return a rule's output and its batch dims, as the dispatcher takes them: plain indices, none of them negative.

    Args:
        result: what the rule returned.
        level: for which level.
        whose: names the rule.
        outputs: how many outputs the operator has; None if that is not known.

    Raises:
        RuleError: it is no such pair.
    """
    if not isinstance(result, list | tuple) or len(result) != 2:
        _refuse(whose, f"{_described(result)}, not a pair", level)
    out, dims = result
    held = children(out)
    if outputs is not None and (outputs != 1 if held is None else outputs == 1 or len(held) != outputs):
        wanted = "a tensor" if outputs == 1 else f"{outputs} outputs"
        _refuse(whose, f"{_described(out)} as output, where the operator has {wanted}", level)
    return out, _dims(out, dims, level, whose)


def _dims(out: Any, dims: Any, level: Level, whose: str) -> Any:
    """Return the batch dims of an output, nested like it."""
    held = children(out)
    if held is None:
        return _dim(out, dims, level, whose) if isinstance(out, Tensor) else None
    given: Any = children(dims)
    if given is None:
        given = [dims] * len(held)
    elif isinstance(out, dict) and isinstance(dims, dict):
        given = [dims[key] for key in out] if out.keys() == dims.keys() else ()
    if len(given) != len(held):
        _refuse(whose, f"out_dims={dims!r}, which do not fit its output: {_described(out)}", level)
    return dims_like(out, [_dims(o, d, level, whose) for o, d in zip(held, given, strict=True)])


def _dim(out: Tensor, dim: Any, level: Level, whose: str) -> int | None:
    if dim is None:
        return None
    if isinstance(dim, bool | Tensor) or not hasattr(dim, "__index__"):
        _refuse(whose, f"out_dims={dim!r} for {_described(out)}: neither an int nor None", level)
    index, rank = operator.index(dim), out.dim()
    if not -rank <= index < rank:
        _refuse(whose, f"out_dims={index} for {_described(out)}: there is no such dim", level)
    index %= rank
    if out.size(index) != level.batch_size:
        _refuse(whose, f"out_dims={index} for {_described(out)}: that dim is not of the batch size", level)
    return index


def _refuse(whose: str, what: str, level: Level) -> NoReturn:
    raise RuleError(
        f"vmap: {whose}, returned {what}, at {user_location()}. Expected: (output, out_dims), with the index of the batch "
        f"dim, whose size here is {level.batch_size}, for each tensor of the output, or None where all samples share it."
    )


def _described(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)}"
    held = children(x)
    return repr(x) if held is None else f"a {type(x).__name__} of {len(held)}"


def _outputs(op: Any) -> int | None:
    """Return how many outputs an operator's rule has to return, 1 for one tensor; None where anything may come."""
    if not isinstance(op, OpOverload) or op._schema.is_mutable:
        return None
    kinds = [str(r.type) for r in op._schema.returns]
    return len(kinds) if len(kinds) > 1 or kinds == ["Tensor"] else None


def _named(op: Any) -> str:
    return str(op) if isinstance(op, OpOverload) else function_name(op)


def _place(function: Callable[..., Any]) -> str:
    """Return a rule's name and where it is written."""
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{getattr(function, '__module__', '?')}.{function_name(function)}{where}"
