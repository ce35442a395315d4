"""`Program`: a captured function, and the Python code that replays it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import Parameter

from . import _autocast, _tree
from ._backends import hand_over
from ._dynamo import graph_break
from ._errors import CaptureError
from ._record import Recorder
from ._tensor import BatchedTensor

_TENSORS = {Tensor, Parameter, BatchedTensor}


def ambient() -> tuple[Any, ...]:
    """Return the state of PyTorch that operations depend on besides their arguments."""
    state = _autocast.state()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), state


def traits(x: Any) -> tuple[Any, ...]:
    """Return what a program depends on in a leaf of its arguments: of a tensor all but the values."""
    if isinstance(x, Tensor):
        if x.layout is not torch.strided or x.is_nested:
            return type(x), x.layout
        return x.shape, x.stride(), x.dtype, x.device, x.requires_grad, x.is_complex() and x.is_conj()
    if type(x) in (int, bool, str, float, complex, type(None), torch.dtype, torch.device):
        return type(x), repr(x)  # apart are 1, 1.0 and True, 0.0 and -0.0; one are nan and nan
    return type(x), id(x)


class Program:
    """The operations of one run of a function, on other values: no vmap is left in it.

    Call it as the function. ``print`` shows its code.

    Attributes:
        graph_module: the operations as a ``torch.fx.GraphModule``; its inputs are the leaves of the arguments, then the
            captured tensors; its outputs, the tensors among the leaves of the result.
        captured: the tensors from outside that the function uses, by identity: what an optimizer writes to them is
            seen, and gradients reach them.
        name: what the function is called.
    """

    def __init__(self, recorder: Recorder, name: str, spec: Any, out_spec: Any, out_leaves: list[Any]) -> None:
        """Take over what has been recorded; `capture` does."""
        self.name = name
        self.captured = [x for x, _ in recorder.captured]
        self.check = _fast_check([x for x in recorder.inputs if isinstance(x, Tensor)])
        self.tensor_names = [f"x{i}" for i, x in enumerate(recorder.inputs) if isinstance(x, Tensor)]
        self.leaves = [None if isinstance(x, Tensor) else x for x in recorder.inputs]  # alive, as their ids are known
        self.spec = spec
        args_spec, kwargs_spec = spec[2]
        self.unpack = unpacker(spec)
        self.flat = not kwargs_spec[2] and all(child is None for child in args_spec[2])  # the leaves are the arguments
        self._traits = [traits(x) for x in recorder.inputs]
        self._ambient = ambient()
        self._captured_traits = [_captured_traits(x) for x in self.captured]
        self._out_spec = out_spec
        self._out_leaves = [None if isinstance(o, Tensor) else o for o in out_leaves]
        self._out_tensors = [i for i, o in enumerate(out_leaves) if isinstance(o, Tensor)]
        self.graph_module = GraphModule(recorder.constants, recorder.graph, class_name="Program")
        self._replay = self.bind(self.graph_module, None, self._misfit)

    def bind(self, run: Callable[..., Any], takes: list[int] | None, miss: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of the leaves that checks them and runs the graph.

        Args:
            run: the program's graph module, or what takes its place: a function that returns a sequence of tensors.
            takes: which of the leaves and captured tensors ``run`` takes; None for all.
            miss: called with the leaves where the program does not fit them.
        """
        return _Source(self, run, takes, miss).function()

    def captured_fit(self) -> bool:
        """Tell whether the captured tensors are still of the kind that was captured."""
        return [_captured_traits(x) for x in self.captured] == self._captured_traits

    @graph_break
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay.

        Raises:
            CaptureError: the arguments, or PyTorch's state, are not of the kind that was captured.
        """
        if self.flat and not kwargs and len(args) == len(self.leaves):
            return self._replay(*args)
        return self._replay(*self._take_apart(args, kwargs))

    def run_by(self, backend: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Program:
        """Return a program for the same arguments and results, whose operations a backend runs.

        Args:
            backend: a backend of torch.compile, by name or as a function ``(graph_module, example_inputs) -> callable``.
                The inputs are tensors; the graph's placeholders of captured ones have a true ``meta["captured"]``.
            args: arguments as the program takes them, for the backend to look at.
            kwargs: keyword arguments, likewise.

        Raises:
            CaptureError: the arguments, or PyTorch's state, are not of the kind that was captured.

        Examples:
            >>> import torch
            >>> from vmap_core import capture, vmap
            >>> def show(graph_module, example_inputs):
            ...     return lambda *inputs: print("a call") or graph_module(*inputs)
            >>> x = torch.ones(4, 3)
            >>> capture(vmap(torch.sum), x).run_by(show, x)(2 * x)
            a call
            tensor([6., 6., 6., 6.])
        """
        leaves = list(self._take_apart(args, kwargs))
        if [*map(traits, leaves)] != self._traits or ambient() != self._ambient or not self.captured_fit():
            self._misfit(*leaves)
        other = copy.copy(self)
        other._replay = self.bind(*hand_over(self, backend, leaves), self._misfit)
        return other

    def _take_apart(self, args: Any, kwargs: Any) -> Any:
        """Return the leaves of arguments."""
        if self.flat and (kwargs or len(args) != len(self.leaves)):
            raise CaptureError(f"vmap: the program of {self.name} takes {len(self.leaves)} positional arguments.")
        leaves = self.unpack(args, kwargs)
        if leaves is None:
            raise CaptureError(
                f"vmap: the arguments have another structure than those that the program of {self.name} was captured "
                f"with. Instead: capture again, or use vmap_core.compile."
            )
        return leaves

    def _misfit(self, *leaves: Any) -> Any:
        """Say in what way arguments do not fit."""
        hint = "Instead: capture again, or use vmap_core.compile."
        head = f"vmap: the program of {self.name} was captured with"
        names = "shape", "strides", "dtype", "device", "requires_grad", "lazy conjugation"
        for i, (x, wanted) in enumerate(zip(leaves, self._traits, strict=True)):
            got = traits(x)
            if got != wanted:
                if len(got) != len(wanted) or not isinstance(x, Tensor):
                    raise CaptureError(f"{head} another value for leaf {i} of its arguments than {x!r}. {hint}")
                k = next(k for k in range(len(names)) if got[k] != wanted[k])
                raise CaptureError(f"{head} {names[k]} {wanted[k]} for leaf {i} of its arguments, not {got[k]}. {hint}")
        states = "grad mode", "inference mode", "default dtype", "autocast"
        for what, wanted, got in zip(states, self._ambient, ambient(), strict=True):
            if wanted != got:
                raise CaptureError(f"{head} {what} {wanted}, and is called with {got}. {hint}")
        if any(type(x) is BatchedTensor for x in leaves):
            raise CaptureError(
                f"vmap: the program of {self.name} is run by a backend, which takes no batched tensors. Instead: in a mapped "
                f"function, call the program that capture returned."
            )
        raise CaptureError(f"{head} captured tensors of another shape, dtype or requires_grad. {hint}")

    def result(self, tensors: Any) -> Any:
        """Return the graph's outputs as the function returns them."""
        leaves = list(self._out_leaves)
        for i, t in zip(self._out_tensors, tensors, strict=True):
            leaves[i] = t
        return _tree.unflatten(self._out_spec, iter(leaves))

    def __repr__(self) -> str:
        """Show the code."""
        lines = [f"# {self.name}"]
        for node in self.graph_module.graph.nodes:
            if node.op == "placeholder":
                lines.append(f"# {node.name}: {node.meta['kind']}")
        body = [line.partition("  #")[0].rstrip() for line in self.graph_module.code.strip().splitlines()]
        body = [line.partition(";  ")[0] for line in body if line.strip()]
        return "\n".join(lines + [line for line in body if not line.startswith("torch.fx._symbolic_trace")])


def _fast_check(tensors: list[Tensor]) -> Callable[..., bool]:
    """Return a function that may say True for tensors with the same traits, in a fraction of the time.

    torch.compile's own check, in C++; it says False also for a tensor given twice, and for one of another class.
    """
    try:
        from torch._C._dynamo.guards import TensorGuards

        shapes: Any = [list(x.shape) for x in tensors]
        strides: Any = [list(x.stride()) for x in tensors]
        guards = TensorGuards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides)
        check: Callable[..., bool] = guards.check
        return check
    except (ImportError, TypeError):
        return lambda *_: False


def _captured_traits(x: Tensor) -> tuple[Any, ...]:
    return x.requires_grad, x.shape, x.dtype


def unpacker(spec: Any) -> Callable[[Any, Any], Any]:
    """Return a function that takes ``(args, kwargs)`` apart: their leaves, or None for another structure than ``spec``."""
    names: dict[str, Any] = {}
    checks: list[str] = []
    leaves: list[str] = []

    def visit(spec: Any, at: str) -> bool:
        if spec is None:
            leaves.append(at)
            return True
        kind, context, children = spec
        if kind not in (tuple, list, dict):
            return False
        names[f"k{len(names)}"] = kind
        checks.append(f"type({at}) is k{len(names) - 1} and len({at}) == {len(children)}")
        if kind is not dict:
            return all(visit(child, f"{at}[{i}]") for i, child in enumerate(children))
        names[f"k{len(names)}"] = context
        checks.append(f"list({at}) == k{len(names) - 1}")
        return all(type(k) is str and visit(child, f"{at}[{k!r}]") for k, child in zip(context, children, strict=True))

    if visit(spec[2][0], "args") and visit(spec[2][1], "kwargs"):
        exec(
            f"def unpack(args, kwargs):\n    return ({', '.join([*leaves, ''])}) if {' and '.join(checks)} else None",
            names,
        )
        made: Callable[[Any, Any], Any] = names["unpack"]
        return made

    def flatten(args: Any, kwargs: Any) -> Any:
        found: list[Any] = []
        return found if _tree.flatten((args, kwargs), found) == spec else None

    return flatten


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
            self.returns([f"out[{i}]" for i in range(len(program._out_tensors))])
        exec(compile("\n".join(self.lines), f"<program of {program.name}>", "exec"), self.names)
        return self.names["replay"]

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
            checks.append(f"not {self.bound(torch._C._is_any_autocast_enabled, 'autocast')}()")
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
        if self.program._out_spec is None and tensors:
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
        switches = any(node.target in (torch._C._set_grad_enabled, _autocast.set_state) for node in nodes)
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
        switches = {torch._C._set_grad_enabled: grad, _autocast.set_state: autocast}
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
