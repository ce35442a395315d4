"""What torch.compile sees of the transforms: an operator each, whose body is the function that is differentiated.

`vjp` and `linearize` return a function. In a graph that is a second operator, given the tensors of the recorded graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import Transform, UnsupportedError, applied, map_leaves, show_as, user_location

from . import jacobians, per_sample, transforms
from ._checks import output_tensors
from ._torch import tree_flatten, tree_unflatten
from ._trace import Trace, gradients, physical, requires_grad, trace
from .accumulate import leaves_of, nodes_of


def _recording(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs with grad mode on, as a transform runs it."""

    def recording(*args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            return func(*args, **kwargs)

    return recording


def _input(x: Any) -> Any:
    """Return a tensor as the function that is differentiated finds it."""
    if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()):
        return x.detach().requires_grad_()
    return x


def _chosen(args: Any, kwargs: Any, more: Any, argnums: Any = 0, *given: Any, **options: Any) -> Any:
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    chosen = {n % len(args) for n in numbers if -len(args) <= n < len(args)}
    return tuple(map_leaves(_input, x) if i in chosen else x for i, x in enumerate(args)), kwargs


def _all(args: Any, kwargs: Any, more: Any, *given: Any, **options: Any) -> Any:
    return map_leaves(_input, args), kwargs


def _as_given(args: Any, kwargs: Any, more: Any, *given: Any, **options: Any) -> Any:
    return args, kwargs


def _one_sample(args: Any, kwargs: Any, more: Any, *given: Any) -> Any:
    params, *xy = args
    return (map_leaves(_input, params), *map_leaves(lambda t: t[0] if isinstance(t, Tensor) else t, xy)), kwargs


def _copied(tree: Any) -> Any:
    """Copy tensors: forward mode, while it is traced, fails at a view of a view."""
    return map_leaves(lambda x: x.clone() if isinstance(x, Tensor) else x, tree)


def _of_function(transform: Any, samples: Callable[..., Any], around: Callable[..., Any] = _recording) -> None:
    """Show a transform that takes a function and returns one of the same arguments."""
    name = transform.__name__

    def run(func: Any, args: Any, kwargs: Any, more: Any, *given: Any, **options: Any) -> Any:
        args = _copied(args) if transform is jacobians.jacfwd else args
        return transform(func, *given, **options)(*args, **kwargs)

    def seen(func: Any, *given: Any, **options: Any) -> Any:
        def transformed(*args: Any, **kwargs: Any) -> Any:
            return applied(name, around(func), args, kwargs, (), given, options)

        return transformed

    show_as(transform, seen, {name: Transform(run, samples)})


for _transform in (transforms.grad, transforms.grad_and_value, jacobians.jacrev):
    _of_function(_transform, _chosen)
_of_function(jacobians.jacfwd, _as_given, lambda func: func)
_of_function(per_sample.gradients_of, _one_sample)


def _seen_jvp(func: Any, primals: Any, tangents: Any, *, strict: bool = False, has_aux: bool = False) -> Any:
    return applied("jvp", func, primals, {}, tangents, (), {"strict": strict, "has_aux": has_aux})


def _jvp(func: Any, args: Any, kwargs: Any, more: Any, **options: Any) -> Any:
    return transforms.jvp(func, _copied(args), more, **options)


show_as(transforms.jvp, _seen_jvp, {"jvp": Transform(_jvp, _as_given)})


def _depends(outputs: list[Any], inputs: list[Any]) -> list[bool]:
    """Tell of each output whether it leads back to an input."""
    own = {id(physical(x)) for x in inputs}
    return [any(id(leaf) in own for leaf in leaves_of([o])) for o in outputs]


def _check(depends: list[bool], outputs: list[Any], inputs: list[Any], name: str) -> None:
    """Refuse tensors that have lost the recorded graph between the two operators."""
    if _depends(outputs, inputs) != depends:
        raise UnsupportedError(
            f"vmap: the function that {name} has returned inside a compiled function is called outside of it, or after a "
            f"graph break, at {user_location()}, where its recorded graph is gone. Instead: call both in one graph "
            f"(torch.compile(..., fullgraph=True) says what breaks it), or both outside."
        )


def _seen_vjp(func: Any, *primals: Any, has_aux: bool = False) -> Any:
    out, aux, *graph = applied("vjp", _recording(func), primals, {}, (), (has_aux,), {})

    def vjp_fn(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        return applied("vjp_fn", None, (), {}, (graph, cotangents), (retain_graph, create_graph), {})

    return (out, vjp_fn, aux) if has_aux else (out, vjp_fn)


def _vjp(func: Any, args: Any, kwargs: Any, more: Any, has_aux: bool) -> Any:
    traced = trace(func, None, args, {}, has_aux, "vjp")
    inputs = tree_unflatten(traced.inputs, traced.in_spec)
    depends = _depends(tree_flatten(traced.out)[0], traced.inputs)
    return traced.result(traced.out), traced.result(traced.aux), traced.out, inputs, traced.connected, depends


def _vjp_fn(func: Any, args: Any, kwargs: Any, more: Any, retain_graph: bool, create_graph: bool | None) -> Any:
    (out, inputs, connected, depends), cotangents = more
    flat, spec = tree_flatten(inputs)
    _check(depends, tree_flatten(out)[0], flat, "vjp")
    traced = Trace(flat, spec, out, None, connected, -1)
    grads = tree_unflatten(transforms.vjp_function(traced, "vjp")(cotangents, retain_graph, create_graph), spec)
    return grads if create_graph or requires_grad(cotangents) else traced.result(grads)


show_as(transforms.vjp, _seen_vjp, {"vjp": Transform(_vjp, _all), "vjp_fn": Transform(_vjp_fn, _as_given)})


def _seen_linearize(func: Any, *primals: Any) -> Any:
    out, *graph = applied("linearize", _recording(func), primals, {}, (), (), {})

    def jvp_fn(*tangents: Any) -> Any:
        return applied("jvp_fn", None, (), {}, (out, graph, primals, tangents), (), {})

    return out, jvp_fn


def _linearize(func: Any, args: Any, kwargs: Any, more: Any) -> Any:
    traced = trace(func, None, args, {}, False, "linearize")
    linear = transforms.linear_map(traced)
    depends = _depends(linear.grads, linear.vectors)
    return traced.result(traced.out), linear.grads, linear.vectors, traced.connected, depends


def _jvp_fn(func: Any, args: Any, kwargs: Any, more: Any) -> Any:
    out, (grads, vectors, connected, depends), primals, tangents = more
    flat, spec = tree_flatten(primals)
    given = transforms.checked_vectors(flat, spec, tangents)
    _check(depends, grads, vectors, "linearize")
    traced = Trace(flat, spec, out, None, connected, -1)
    recorded = torch.is_grad_enabled() and (traced.recorded or requires_grad(given))
    pushed = tree_unflatten(
        gradients(grads, vectors, given, True, recorded, traced.hooks), output_tensors(out, "jvp")[1]
    )
    return pushed if requires_grad(tangents) else traced.result(pushed)


show_as(
    transforms.linearize, _seen_linearize,
    {"linearize": Transform(_linearize, _all), "jvp_fn": Transform(_jvp_fn, _as_given)},
)  # fmt: skip


def _seen_autograd_grad(
    outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: bool | None = None, create_graph: bool = False,
    allow_unused: bool | None = None, is_grads_batched: bool = False, materialize_grads: bool = False,
) -> Any:  # fmt: skip
    options = {
        "create_graph": create_graph, "allow_unused": allow_unused, "is_grads_batched": is_grads_batched,
        "materialize_grads": materialize_grads,
    }  # fmt: skip
    return applied("autograd.grad", None, (), {}, (outputs, inputs, grad_outputs), (), options)


def _autograd_grad(func: Any, args: Any, kwargs: Any, more: Any, **options: Any) -> Any:
    stop = [x.grad_fn for x in map(physical, tree_flatten(more[1])[0])]
    behind = nodes_of(tree_flatten(more[0])[0], stop)
    if any(type(node).__name__ == "Error" and node.next_functions for node in behind):  # of an input that has a graph
        raise UnsupportedError(
            f"vmap: torch.autograd.grad inside a mapped function, at {user_location()}, of what was computed outside of the "
            f"compiled function, whose graph the compiler does not have. Instead: compute it inside."
        )
    outputs, inputs, vectors = more
    return torch.autograd.grad(
        outputs, inputs, vectors, retain_graph=True, **options
    )  # the compiler runs it more than once


show_as(
    torch.autograd.grad,
    _seen_autograd_grad,
    {"autograd.grad": Transform(_autograd_grad, _as_given)},
    in_bodies_only=True,
)
