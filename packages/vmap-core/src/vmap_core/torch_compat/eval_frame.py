"""torch.compile: functions that it is to run as they are, and its backends."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, TypeVar

from torch._C._dynamo import eval_frame

F = TypeVar("F", bound=Callable[..., Any])

_AS_IT_IS = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)


def graph_break(function: F) -> F:
    """Let torch.compile run a function, and all it calls, as it is.

    This is what ``torch.compiler.disable`` does, without importing the compiler and without a wrapper around each call.
    """
    skip_frame(function)
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


def skip_frame(function: Callable[..., Any]) -> None:
    """Let torch.compile run a function, and those that it defines, as it is where it is called from code that is not compiled."""
    assert isinstance(function, FunctionType)
    for code in (function.__code__, *function.__code__.co_consts):
        if isinstance(code, CodeType):
            eval_frame.set_code_exec_strategy(code, _AS_IT_IS)


def backend_of(name: str) -> Any:
    """Return a backend of torch.compile by its name."""
    from torch._dynamo import lookup_backend  # takes seconds to import

    return lookup_backend(name)
