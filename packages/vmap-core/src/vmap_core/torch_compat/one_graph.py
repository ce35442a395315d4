"""What torch.compile, and a strict torch.export, see of a transform: one operator of a graph, and no graph break.

The compiler follows Python by interpreting it, and cannot follow what a transform does with it. So it is shown something
else in its place: an operator whose body is the user's function. The body it records as it records anything, for one
sample: with its guards, and with what the function captures, a module's parameters too, as inputs, so that gradients
reach them. The graph's node calls the transform on the recorded body, and whoever runs the graph, or traces it further,
runs that. `dynamo` has the part of this that imports the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..errors import UnsupportedError
from .eval_frame import skip_frame

F = TypeVar("F", bound=Callable[..., Any])


class Transform(NamedTuple):
    """A transform, as a node of a graph runs it.

    Attributes:
        run: ``(func, args, kwargs, more, *given, **options) -> output``.
        samples: ``(args, kwargs, more, *given, **options) -> (args, kwargs)``: what the function is to be recorded on.
    """

    run: Callable[..., Any]
    samples: Callable[..., Any]


class TransformOperator(HigherOrderOperator):
    """The operator that the compiler sees: ``transform(body, leaves, spec, more, more_spec, name, given, options)``."""

    def __init__(self) -> None:
        """Register it."""
        super().__init__("vmap_core_transform")

    def __call__(
        self,
        body: Any,
        leaves: Any,
        spec: TreeSpec,
        more: Any,
        more_spec: TreeSpec,
        name: str,
        given: Any,
        options: Any,
    ) -> tuple[list[Any], TreeSpec]:
        """Run the transform, after a graph break in front of the operator."""

        def func(*args: Any, **kwargs: Any) -> Any:
            return tree_unflatten(*body(*tree_flatten((args, kwargs))[0]))

        args, kwargs = tree_unflatten(leaves, spec)
        more = tree_unflatten(more, more_spec)
        return tree_flatten(transforms[name].run(body and func, args, kwargs, more, *given, **options))


class RunOperator(HigherOrderOperator):
    """The operator in the graph: ``run(body, *tensors)``. What a body is for is said in its ``meta``."""

    def __init__(self) -> None:
        """Register it."""
        super().__init__("vmap_core_run")

    def __call__(self, body: Any, *tensors: Any) -> tuple[Tensor, ...]:
        """Run it, for the compiler's backend, or for what traces further."""
        node: Node = body.meta[IN_META]
        if torch.compiler.is_exporting() and _differentiates(node.name, body):
            return _by_parts(node, body, tensors)
        return node(body, *tensors)


def _differentiates(name: str, body: Any) -> bool:
    """Tell whether a transform takes derivatives, or one that its body applies does."""
    return name not in ("vmap", "custom_vmap") or any(
        _differentiates(part.meta[IN_META].name, part) for part in body.children() if IN_META in part.meta
    )


def _by_parts(node: Node, body: Any, tensors: Any) -> tuple[Tensor, ...]:
    """Run it, where an export traces it, by what it is made of.

    An export records what is called above autograd: not what autograd itself computes, in a backward pass or for it.
    """
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, make_fx

    mode = get_proxy_mode()
    if mode is None or not mode.pre_dispatch:
        return node(body, *tensors)

    def called(*tensors: Any) -> tuple[Tensor, ...]:
        out = node(body, *tensors)
        if any(o.requires_grad for o in out):  # what a backward pass has saved would be constants
            raise UnsupportedError(
                f"vmap: torch.export of {node.name}, whose result requires grad: an exported derivative cannot be "
                f"differentiated again. Instead: export under torch.no_grad()."
            )
        return out

    with disable_proxy_modes_tracing():
        parts = make_fx(called)(*tensors)
    return parts(*tensors)


IN_META = "vmap_core"
operator, run = TransformOperator(), RunOperator()
transforms: dict[str, Transform] = {}
seen_as: dict[Any, Callable[..., Any]] = {}
"""What the compiler sees in the place of a function."""
seen_in_bodies_as: dict[Any, Callable[..., Any]] = {}
"""The same, for functions of PyTorch, in the body of a transform alone."""


def applied(name: str, func: Any, args: Any, kwargs: Any, more: Any, given: Any, options: Any) -> Any:
    """Run a transform by its name, as one operator where the compiler is following.

    Args:
        name: of the transform, in `transforms`.
        func: the function of one sample; None for a transform that needs none any more.
        args: the arguments of the transformed function that reach ``func``.
        kwargs: keyword arguments that do.
        more: a tree of further arguments.
        given: what the transform was given beside the function: constants.
        options: the same, by keyword.
    """
    if not torch.compiler.is_dynamo_compiling():  # called after a graph break
        return transforms[name].run(func, args, kwargs, more, *given, **options)
    leaves, spec = tree_flatten((args, kwargs))
    more_leaves, more_spec = tree_flatten(more)

    def body(*leaves: Any) -> Any:
        args, kwargs = tree_unflatten(leaves, spec)
        return tree_flatten(func(*args, **kwargs))

    outs, out_spec = operator(
        None if func is None else body, leaves, spec, more_leaves, more_spec, name, given, options
    )  # fmt: skip
    return tree_unflatten(outs, out_spec)


skip_frame(applied)


def show_as(
    function: Any, seen: Callable[..., Any], parts: dict[str, Transform], *, in_bodies_only: bool = False
) -> None:
    """Let the compiler see another function in the place of one: one that calls `applied`.

    Args:
        function: of a module; it is there as long as the process is.
        seen: takes the same arguments.
        parts: what it applies, by name.
        in_bodies_only: only where it is called in the body of a transform.
    """
    skip_frame(seen)
    if in_bodies_only:
        seen_in_bodies_as[function] = seen
    else:
        skip_frame(function)
        seen_as[function] = seen
    transforms.update(parts)


def in_body() -> bool:
    """Tell whether the compiler is recording the body of a transform; outside of the compiler it is not."""
    return False


def in_bodies(ours: Callable[..., Any], native: Callable[..., Any]) -> Callable[..., Any]:
    """Return what the compiler sees of a function of PyTorch's: ours in the body of a transform, else its own."""

    def seen(*args: Any, **kwargs: Any) -> Any:
        return (ours if in_body() else native)(*args, **kwargs)

    return seen


def made_by(made: F, transform: Callable[..., Any], func: Any, *given: Any, **options: Any) -> F:
    """Return a function after noting that it is ``transform(func, *given, **options)``, for the compiler to see it."""
    made.__transform__ = (id(made), (transform, func, given, options))  # type: ignore[attr-defined]
    return made


def call_made(made: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what a transform has made: the compiler sees this in the place of a call."""
    transform, func, given, options = made.__transform__[1]
    return transform(func, *given, **options)(*args, **kwargs)


class At(NamedTuple):
    """A leaf that is the tensor of this number, among others."""

    number: int


class Node:
    """What a node of a graph does: runs a transform of a recorded body."""

    def __init__(self, name: str, given: Any, options: Any, leaves: list[Any], spec: TreeSpec, more: Any) -> None:
        """Note what is constant: the leaves that are tensors are an `At`."""
        self.name, self.given, self.options = name, given, options
        self.leaves, self.spec, self.more = leaves, spec, more
        self.places: list[int | None] = []
        self.outs: Any = None
        self.result: tuple[list[Any], TreeSpec] | None = None

    def samples(self, tensors: list[Tensor]) -> list[Any]:
        """Return the leaves that the body is to be recorded on."""
        args, kwargs = self.tree(self.leaves, self.spec, tensors)
        more = self.tree(self.more[0], self.more[1], tensors)
        return tree_flatten(transforms[self.name].samples(args, kwargs, more, *self.given, **self.options))[0]

    def __call__(self, body: Any, *tensors: Any) -> tuple[Tensor, ...]:
        """Run it; the tensors are those of the arguments, and then what the body captures."""
        args, kwargs = self.tree(self.leaves, self.spec, tensors)
        more = self.tree(self.more[0], self.more[1], tensors)
        own = sum(type(leaf) is At for leaf in (*self.leaves, *self.more[0]))
        func = None if body is None else Body(self, body, tensors[own:])
        out = transforms[self.name].run(func, args, kwargs, more, *self.given, **self.options)
        leaves, spec = tree_flatten(out)
        found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        count = iter(range(len(found)))
        self.result = [At(next(count)) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
        return tuple(found)

    @staticmethod
    def tree(leaves: list[Any], spec: TreeSpec, tensors: Any) -> Any:
        """Put tensors into their places in a tree."""
        return tree_unflatten([tensors[leaf.number] if type(leaf) is At else leaf for leaf in leaves], spec)


class Body:
    """The function of one sample, as the compiler has recorded it."""

    def __init__(self, node: Node, graph: Any, captured: Any) -> None:
        """Take a graph, and what it is to find in the places of captured tensors."""
        self.node, self.graph, self.captured = node, graph, captured
        self.__name__ = "function"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it on one sample."""
        leaves = tree_flatten((args, kwargs))[0]
        captured = iter(self.captured)
        given = [next(captured) if place is None else leaves[place] for place in self.node.places]
        return self.node.tree(self.node.outs[0], self.node.outs[1], self.graph(*given))
