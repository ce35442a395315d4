"""Recording the physical operations of one run as a straight-line fx graph.

Two modes watch a run, outside all levels (see `watch`). One sees the calls that rules make, as Python makes them, and
each is recorded as one node. The other sees ATen's operations below; what does not come from a recorded call (the
formulas of a backward pass, views inside a composite operator) is recorded there. So nothing escapes, and each thing
is recorded at the highest level at which it can be seen.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..errors import CaptureError
from ..levels.randomness import generators
from ..torch_compat import autocast
from ..torch_compat.dispatcher import WithoutDispatchKeys
from ..torch_compat.operators import RANDOM, OpOverload
from ..torch_compat.tensors import tensor_check
from ..torch_compat.versions import TENSOR_PRINTING
from . import spelling
from .traits import traits
from .values import Values, layout_of, state_of_grad, storage_of, tensors_of

aten = torch.ops.aten


class Call:
    """One recorded call, or one that runs.

    Attributes:
        node: its node in the graph.
        tape: the operations it ran below, ``(op, args, kwargs, output)``. They take its place when a backward pass
            needs a tensor that only they have seen.
        outputs: the tensors it returned.
        items: the nodes for those of them that are items of its result.
        made, written: storages that it made, and that it wrote to.
        writes, draws, reads: what it did besides computing.
        may_index: it may count the elements that a mask selects: the shape of its result does not depend on them.
        indexes: it has done so.
    """

    node: Node

    def __init__(self) -> None:
        """Start a call that has done nothing yet."""
        self.tape: list[tuple[OpOverload, Any, Any, Any]] = []
        self.outputs: list[Tensor] = []
        self.items: list[Node] = []
        self.made: set[int] = set()
        self.written: set[int] = set()
        self.writes = self.draws = self.reads = False
        self.may_index = self.indexes = False


class Recorder(Values):
    """Records what the modes see.

    Attributes:
        strict: raise where something cannot be captured; else go on with the run, unrecorded.
        failure: why the run could not be captured, if it could not.
        paused: whether what runs is of no interest (it is shown to a reader).
        applied: for each autograd.Function, what the graph calls.
        traits: of what kind the inputs were before the run.
        check: tells whether tensors are of the inputs' kind.
    """

    def __init__(self, strict: bool) -> None:
        """Start with an empty graph."""
        super().__init__()
        self.strict = strict
        self.failure: CaptureError | None = None
        self.paused = False
        self.applied: dict[Any, Callable[..., Any]] = {}
        self._running: Call | None = None
        self._states = {torch.default_generator: torch.default_generator.get_state()}

    def look_at_inputs(self) -> None:
        """Note of what kind the inputs are, before the run: what requires a gradient may be written to one."""
        self.traits = [traits(x) for x in self.inputs]
        self.check = tensor_check([x for x in self.inputs if isinstance(x, Tensor)])

    def fail(self, error: CaptureError) -> None:
        """Stop recording: raise, or remember why and let the run go on."""
        if _is_shown():
            return
        self.failure = self.failure or error
        if self.strict:
            raise error

    def run(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], expand: bool = True) -> Any:
        """Run a call and record it as one node.

        Args:
            func: a function of PyTorch, as ``__torch_function__`` gets it.
            args: positional arguments, with physical tensors.
            kwargs: keyword arguments.
            expand: whether the operations below may take its place.
        """
        call = Call()
        try:
            nodes = self._as_nodes(args, kwargs)
        except CaptureError as error:
            self.fail(error)
            return func(*args, **kwargs)
        call.may_index = func in WRITES_WHERE
        call.writes = getattr(func, "mutates_args", False)  # to memory, by no operation that shows
        grad = torch.is_grad_enabled()
        before, self._running = self._running, call
        try:
            out = func(*args, **kwargs)
        finally:
            self._running = before
        if self.failure is None:
            try:
                self._enter(call, func, (args, kwargs), nodes, out, grad)
                for *_, made in call.tape if expand else ():
                    for t in tensors_of(made):
                        self._inner.setdefault(id(t), call)
                if call.written - call.made - {storage_of(t) for t in tensors_of((args, kwargs))}:
                    self._expand(call)  # it writes to the tangent of an argument too
            except CaptureError as error:
                self.fail(error)
        return out

    def _enter(self, call: Call, func: Any, given: Any, nodes: Any, out: Any, grad: bool) -> None:
        args, kwargs = nodes
        call.outputs = list(tensors_of(out))
        if call.reads and not (call.outputs and func in READS_A_NUMBER and not _has_slices(given)):
            raise self.refusal(f"{spelling.name_of(func)} reads the value of a tensor")
        if not (call.outputs or call.writes or call.draws):
            return  # about shapes and the like, which are the same for all calls of the program
        kind, target, args = spelling.call_form(func, given, args)
        kwargs = spelling.given_kwargs(func, kwargs)
        impure = call.writes or call.draws
        call.node = self._node(kind, target, args, kwargs, grad, impure)
        if func in DETACHES:
            call.node.meta["tracked"] = False
        self._bind(call, out, call.node, {id(t) for t in tensors_of(given)})

    def _bind(self, call: Call, out: Any, node: Node, arguments: set[int]) -> None:
        """Say which tensors a node has made. One that was an argument stays what it is."""
        if call.writes and node.meta["tracked"]:
            self._tracked_writes = True  # the graph of what was written, of its base and its views is another now
        if isinstance(out, Tensor):
            node.meta.update(layout_of(out))
            if id(out) not in arguments or id(out) not in self._nodes:
                self._know(out, node)
        elif isinstance(out, list | tuple):
            for i, o in enumerate(out):
                if next(tensors_of(o), None) is not None:
                    item = self._node("call_function", operator.getitem, (node, i), {}, node.meta["grad"], False)
                    item.meta["tracked"] = node.meta["tracked"]
                    call.items.append(item)
                    self._bind(call, o, item, arguments)

    # operations of ATen

    def kernel(self, op: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation of ATen: one of the running call's, or one that nothing above has seen."""
        if self.paused:
            out = op(*args, **kwargs)
            self._note_made(args, kwargs, out)
            return out
        call = Call() if self._running is None else self._running
        before, self._running = self._running, None
        try:
            self._look(call, op, args)
            out = op(*args, **kwargs)
            self._after(op, args)
        finally:
            self._running = before
        if self.failure is not None:
            return out
        if op is aten.detach.default:
            self._alive.append(out)
            self._detached[id(out)] = args[0]
            return out
        made = self._note_made(args, kwargs, out)
        if before is not None:
            call.made |= made
            call.written.update(map(storage_of, _written(op, args, kwargs)))
            call.tape.append((op, args, kwargs, out))
            return out
        try:
            self._enter_kernel(call, op, args, kwargs, out, torch.is_grad_enabled())
        except CaptureError as error:
            self.fail(error)
        return out

    def _note_made(self, args: Any, kwargs: Any, out: Any) -> set[int]:
        """Return the storages that an operation made: what has one does not come from outside."""
        made = {storage_of(t) for t in tensors_of(out)} - {storage_of(t) for t in tensors_of((args, kwargs))}
        self._made |= made
        self._alive.append(out)
        return made

    def _enter_kernel(self, call: Call, op: OpOverload, args: Any, kwargs: Any, out: Any, grad: bool) -> None:
        if call.reads:
            raise self.refusal(f"{op} reads the value of a tensor")
        if op is aten.lift_fresh.default:  # numbers from Python, in a tensor that may be written to
            op = aten.clone.default
        kwargs = spelling.given_kwargs(op, kwargs)
        nodes, kw_nodes = self._as_nodes(args, kwargs)
        kind, target, nodes = spelling.call_form(op, (args, kwargs), nodes)
        call.node = self._node(kind, target, nodes, kw_nodes, grad, call.writes or call.draws)
        self._bind(call, out, call.node, {id(t) for t in tensors_of((args, kwargs))})

    def _expand(self, call: Call) -> None:
        """Put the operations that a call ran in the place of its node."""
        for *_, made in call.tape:
            for t in tensors_of(made):
                if self._inner.get(id(t)) is call:
                    del self._inner[id(t)]
        if not hasattr(call, "node"):
            return
        if call.indexes or not call.tape:
            raise self.refusal(
                f"a derivative needs the places where a mask of {spelling.name_of(call.node.target)} is true"
            )
        own = (call.node, *call.items)
        replaced = {id(t): self._nodes.pop(id(t)) for t in call.outputs if self._nodes[id(t)] in own}
        with self.graph.inserting_before(call.node), WithoutDispatchKeys(autocast.KEYS):
            for op, args, kwargs, out in call.tape:  # they have been through autocast
                one = Call()
                one.writes, one.draws = op._schema.is_mutable, RANDOM in op.tags
                self._enter_kernel(one, op, args, kwargs, out, call.node.meta["grad"])
            for t in call.outputs:
                if id(t) in replaced:
                    node = self._nodes.get(id(t)) or (self._node_of_detached(t) if id(t) in self._detached else None)
                    if node is not None:
                        self._nodes[id(t)] = node
                        replaced[id(t)].replace_all_uses_with(node)
                        self._replaced[replaced[id(t)]] = node
        for node in reversed(own):
            if node.users:
                raise self.refusal(f"a derivative needs what {spelling.name_of(call.node.target)} computes inside")
            self.graph.erase_node(node)

    def _look(self, call: Call, op: OpOverload, args: Any) -> None:
        """Note what an operation does besides computing."""
        call.reads = call.reads or op in READS
        call.writes = call.writes or op._schema.is_mutable
        if "c10d" in op.namespace:
            self.fail(self.refusal(f"{op} communicates with other processes"))
        if torch.Tag.dynamic_output_shape in op.tags and (op is not aten.index.Tensor or _has_mask(args[1])):
            call.indexes = True
            if not call.may_index:
                self.fail(self.refusal(f"the shape of the result of {op} depends on values"))
        if RANDOM in op.tags:
            call.draws = True
            for generator in generators(args):
                known = self._states.get(generator)
                if known is not None and not torch.equal(known, generator.get_state()):
                    self.fail(self.refusal("the random state has been set inside the function"))

    def _after(self, op: OpOverload, args: Any) -> None:
        if RANDOM in op.tags:
            self._states.update((g, g.get_state()) for g in generators(args))

    # random state, written to by Python

    def generator_call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Run and record a call that reads or sets the state of a generator."""
        generator = args[0]
        self._states.setdefault(generator, generator.get_state())
        nodes, _ = self._as_nodes(args, {})
        out = func(*args)
        self._states[generator] = generator.get_state()
        node = self._node("call_method", func.__name__, nodes, {}, False, not isinstance(out, Tensor))
        if isinstance(out, Tensor):
            self._know(out, node)
        return out

    # the end

    def finish(self, outputs: list[Any]) -> None:
        """Set the outputs.

        Raises:
            CaptureError: something happened during the run that a replay would not repeat.
        """
        for x, *state in self._grads:
            if list(state_of_grad(x)) != state:
                raise self.refusal(f"the function accumulates into the .grad of a tensor of shape {tuple(x.shape)}")
        nodes, _ = self._as_nodes([o for o in outputs if isinstance(o, Tensor)], {})
        self.graph.output(nodes)
        self.graph.erase_node(self._first)
        self._alive, self._inner, self._detached = [], {}, {}

    def drop_unused(self) -> None:
        """Forget captured tensors that no operation is left for."""
        for _, node in self.captured:
            if not node.users:
                self.graph.erase_node(node)
        self.captured = [(x, node) for x, node in self.captured if node.users]


def _written(op: OpOverload, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Iterate over the tensors that an operation writes to."""
    if op._schema.is_mutable:
        for i, a in enumerate(op._schema.arguments):
            if a.alias_info is not None and a.alias_info.is_write:
                yield from tensors_of(args[i] if i < len(args) else kwargs.get(a.name))


def _is_shown() -> bool:
    """Tell whether values are read only to be printed."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__") == TENSOR_PRINTING:
            return True
        frame = frame.f_back
    return False


def _has_mask(indices: Any) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _has_slices(a: Any) -> bool:
    return isinstance(a, slice) or (isinstance(a, list | tuple) and any(map(_has_slices, a)))


READS = {aten._local_scalar_dense.default, aten.item.default, aten.equal.default, aten.is_nonzero.default}

# These take a tensor for a number, and the shape of the result does not depend on it.
READS_A_NUMBER = {Tensor.__getitem__, Tensor.__setitem__, Tensor.fill_, torch.full, torch.full_like, Tensor.new_full}

WRITES_WHERE = {
    Tensor.__setitem__, torch.index_put, Tensor.index_put, Tensor.index_put_, aten.index_put.default,
    aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index_put.default,
}  # fmt: skip

DETACHES = {Tensor.detach, torch.detach, Tensor.data.__get__}  # type: ignore[attr-defined]
