"""The Python code that replays a program."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from ..levels.tensor import BatchedTensor
from ..torch_compat import autocast as _autocast
from ..torch_compat.autocast import is_autocast_enabled
from ..torch_compat.tensors import set_grad_enabled
from .traits import _TENSORS, ambient, traits

if TYPE_CHECKING:
    from .program import Program


class _Source:
    """Makes the function that replays a program: checks, then one line for each operation.

    fx's own code costs more: it looks ``torch.add`` up in two steps, and modules call through hooks.
    """

    def __init__(self, program: Program, run: Any, takes: list[int] | None, miss: Callable[..., Any]) -> None:
        self.program, self.run, self.takes = program, run, takes
        self.names: dict[str, Any] = {
            "miss": miss, "result": program.result, "traits": traits,
            "tensors": _TENSORS if takes is None else _TENSORS - {BatchedTensor},
        }  # fmt: skip
        self.lines: list[str] = []

    def bound(self, value: Any, hint: str = "v") -> str:
        """Return a name for a value in the function's globals."""
        for name, known in self.names.items():
            if known is value:
                return name
        name = f"{''.join(c if c.isalnum() else '_' for c in hint)}_{len(self.names)}"
        self.names[name] = value
        return name

    def function(self) -> Callable[..., Any]:
        """Return the function."""
        program = self.program
        parameters = [f"x{i}" for i in range(len(program.leaves))]
        self.lines.append(f"def replay({', '.join(parameters)}):")
        checks = self.checks(parameters)
        self.lines.append(f"    if not ({' and '.join(checks)}):")
        self.lines.append(f"        return miss({', '.join(parameters)})")
        if self.takes is None:
            self.body(parameters)
        else:
            inputs = parameters + [self.bound(c, "captured") for c in program.captured]
            self.lines.append(f"    out = {self.bound(self.run, 'run')}({', '.join(inputs[i] for i in self.takes)})")
            self.returns([f"out[{i}]" for i in range(len(program.out_tensors))])
        exec(compile("\n".join(self.lines), f"<program of {program.name}>", "exec"), self.names)
        return self.names.pop("replay")  # type: ignore[no-any-return]

    def checks(self, parameters: list[str]) -> list[str]:
        """Return the conditions under which the program stands for the function."""
        program = self.program
        grad, inference, dtype, autocast = program._ambient
        checks = [f"{'' if grad else 'not '}{self.bound(torch.is_grad_enabled, 'is_grad_enabled')}()"]
        if not grad:  # inference mode has it off
            checks.append(f"{self.bound(torch.is_inference_mode_enabled, 'is_inference')}() is {inference}")
        checks.append(f"{self.bound(torch.get_default_dtype, 'get_default_dtype')}() is {self.bound(dtype, 'dtype')}")
        if autocast:
            checks.append(f"{self.bound(ambient, 'ambient')}() == {self.bound(program._ambient, 'state')}")
        else:
            checks.append(f"not {self.bound(is_autocast_enabled, 'autocast')}()")
        of_tensors = []
        for x, wanted in zip(parameters, program._traits, strict=True):
            if len(wanted) == 2:
                checks.append(f"traits({x}) == {self.bound(wanted, 'traits')}")
                continue
            shape, stride, dtype, device, requires_grad, conj = wanted
            of_tensors.append(
                f"type({x}) in tensors and {x}.shape == {tuple(shape)} and {x}.dtype is {self.bound(dtype, 'dtype')} "
                f"and {x}.requires_grad is {requires_grad} and {x}.stride() == {tuple(stride)} "
                f"and {x}.device == {self.bound(device, 'device')}"
            )
            if dtype.is_complex:
                of_tensors.append(f"{x}.is_conj() is {conj}")
        if of_tensors:
            slow = " and ".join(of_tensors)
            checks.append(f"({self.bound(program.check, 'check')}({', '.join(program.tensor_names)}) or {slow})")
        for c in program.captured:
            name = self.bound(c, "captured")
            checks.append(
                f"{name}.requires_grad is {c.requires_grad} and {name}.shape == {tuple(c.shape)} "
                f"and {name}.dtype is {self.bound(c.dtype, 'dtype')}"
            )
        return checks

    def returns(self, tensors: list[str]) -> None:
        """Add the line that returns the outputs."""
        if self.program.out_spec is None and tensors:
            self.lines.append(f"    return {tensors[0]}")
        else:
            self.lines.append(f"    return result([{', '.join(tensors)}])")

    def body(self, parameters: list[str]) -> None:
        """Add the operations. A result takes the place of an argument that is not needed any more."""
        nodes = list(self.run.graph.nodes)
        place: dict[Node, str] = {}
        free = iter(parameters)
        captured = iter(self.program.captured)
        last = {n: i for i, node in enumerate(nodes) for n in node.all_input_nodes}
        switches = any(node.target in (set_grad_enabled, _autocast.set_state) for node in nodes)
        indent = "        " if switches else "    "
        if switches:
            self.lines.append("    try:")
        count = 0
        for i, node in enumerate(nodes):
            if node.op == "placeholder":
                place[node] = next(free, None) or self.bound(next(captured), "captured")
                continue
            if node.op == "get_attr":
                place[node] = self.bound(getattr(self.run, str(node.target)), "constant")
                continue
            if node.op == "output":
                if switches:
                    self.lines += [f"{indent}{line}" for line in self.ambient_again(nodes)]
                self.returns([place[n] for n in node.args[0]])  # type: ignore[union-attr]
                if switches:
                    self.lines[-1] = "    " + self.lines[-1]
                continue
            call = self.call(node, place)
            dying = {place[n] for n in node.all_input_nodes if last[n] == i and n.op.startswith("call")}
            if node in last:
                if dying:
                    place[node] = min(dying)
                    dying.discard(place[node])
                else:
                    place[node] = f"t{count}"
                    count += 1
                call = f"{place[node]} = {call}"
            self.lines.append(indent + "; ".join([call, *(f"{d} = None" for d in sorted(dying))]))
        if switches:
            self.lines += ["    finally:", *(f"        {line}" for line in self.ambient_again(nodes))]

    def ambient_again(self, nodes: list[Node]) -> list[str]:
        """Return the calls that set the grad mode and autocast to what they were before, if the graph sets them."""
        grad, *_, autocast = self.program._ambient
        switches = {set_grad_enabled: grad, _autocast.set_state: autocast}
        used = [f for f in switches if any(node.target is f for node in nodes)]
        return [f"{self.bound(f, 'set')}({self.bound(switches[f], 'state')})" for f in used]

    def call(self, node: Node, place: dict[Node, str]) -> str:
        """Return the expression for a node."""
        args = [self.argument(a, place) for a in node.args]
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        if node.target is getattr:
            return f"{args[0]}.{node.args[1]}"
        args += [f"{k}={self.argument(v, place)}" for k, v in node.kwargs.items()]
        if node.op == "call_method":
            return f"{args[0]}.{node.target}({', '.join(args[1:])})"
        return f"{self.bound(node.target, getattr(node.target, '__name__', 'call'))}({', '.join(args)})"

    def argument(self, a: Any, place: dict[Node, str]) -> str:
        """Return the expression for an argument."""
        if isinstance(a, Node):
            return place[a]
        if isinstance(a, tuple):
            return f"({''.join(self.argument(e, place) + ', ' for e in a)})"
        if isinstance(a, list):
            return f"[{', '.join(self.argument(e, place) for e in a)}]"
        if isinstance(a, dict):
            return f"{{{', '.join(f'{k!r}: {self.argument(v, place)}' for k, v in a.items())}}}"
        if isinstance(a, slice):
            return f"slice({self.argument(a.start, place)}, {self.argument(a.stop, place)}, {self.argument(a.step, place)})"
        if a is None or a is ... or type(a) in (int, bool, str):
            return repr(a)
        return self.bound(a, "value")
