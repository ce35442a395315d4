"""`grad`, `vjp`, `jvp`, `linearize`: functions of functions, with torch.func's signatures, on PyTorch's own engine.

Each gives the function inputs that start a graph of their own, so a derivative is with respect to this use of the
value only, and a derivative of a derivative is an ordinary graph of a graph. Inside a mapped function the inputs have
every level's batch dim: gradients are per sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from vmap_core import vmap
from vmap_core.extend import below_levels, made_by, make_leaf, own_samples

from ._checks import (
    Argnums,
    checked_tangents,
    checked_vectors,
    output_tensors,
    same_structure,
    scalar,
    split_aux,
)
from ._reach import OWN_TANGENTS, levels_met, levels_of
from ._state import takes_derivatives, usable
from ._torch import tree_flatten, tree_unflatten
from ._trace import (
    Trace,
    detached,
    forward_mode_serves,
    gradients,
    gradients_of_rows,
    requires_grad,
    trace,
    trace_for_tangents,
)

_INDEPENDENT = (
    "jvp(f, primals, tangents, strict=True): The output of f is independent of the inputs. This is not allowed with "
    "strict=True."
)


def grad(func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Return a function that computes the gradient of a scalar function.

    Signature and results are those of ``torch.func.grad``
    (https://docs.pytorch.org/docs/stable/generated/torch.func.grad.html).

    Args:
        func: takes tensors, or trees of them, and returns a tensor with one element and no dims.
        argnums: the argument, or arguments, to differentiate by.
        has_aux: whether ``func`` returns ``(output, aux)``; then the result is ``(gradient, aux)``.

    Raises:
        RuntimeError: ``func`` does not return a scalar tensor.

    Examples:
        >>> import torch
        >>> from vmap_core import vmap
        >>> from vmap_autograd import grad
        >>> grad(torch.sin)(torch.tensor(0.0))
        tensor(1.)
        >>> vmap(grad(lambda w, x: (w * x).sum() ** 2), in_dims=(None, 0))(torch.ones(2), torch.eye(2))
        tensor([[2., 0.],
                [0., 2.]])
    """

    @takes_derivatives
    @functools.wraps(func)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        grads, traced = _grad(func, argnums, has_aux, args, kwargs, "grad")
        return (grads, traced.result(traced.aux)) if has_aux else grads

    return made_by(gradient, grad, func, argnums, has_aux)


def grad_and_value(func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Return a function that computes the gradient of a scalar function, and its value.

    As `grad`; the result is ``(gradient, value)``, or ``(gradient, (value, aux))``.

    Examples:
        >>> import torch
        >>> from vmap_autograd import grad_and_value
        >>> grad_and_value(lambda x: x**2)(torch.tensor(3.0))
        (tensor(6.), tensor(9.))
    """

    @takes_derivatives
    @functools.wraps(func)
    def gradient_and_value(*args: Any, **kwargs: Any) -> Any:
        grads, traced = _grad(func, argnums, has_aux, args, kwargs, "grad_and_value")
        value = traced.result(traced.out)
        return grads, (value, traced.result(traced.aux)) if has_aux else value

    return made_by(gradient_and_value, grad_and_value, func, argnums, has_aux)


def _grad(
    func: Callable[..., Any], argnums: Argnums, has_aux: bool, args: Any, kwargs: Any, name: str
) -> tuple[Any, Trace]:
    traced = trace(func, argnums, args, kwargs, has_aux, name)
    out = scalar(traced.out)
    create = traced.recorded
    grads = traced.result(traced.gradients([out], None, retain=create, create=create))
    return tree_unflatten(grads, traced.in_spec), traced


@takes_derivatives
def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """Compute a function and return it with the product of vectors with its Jacobian.

    Signature and results are those of ``torch.func.vjp``
    (https://docs.pytorch.org/docs/stable/generated/torch.func.vjp.html).

    Args:
        func: takes and returns tensors, or trees of them.
        primals: its arguments.
        has_aux: whether ``func`` returns ``(output, aux)``.

    Returns:
        ``(output, vjp_fn)`` or ``(output, vjp_fn, aux)``. ``vjp_fn(cotangents)``, of the structure of the output, gives
        a tuple with an entry for each primal. It may be mapped, and called again.

    Examples:
        >>> import torch
        >>> from vmap_core import vmap
        >>> from vmap_autograd import vjp
        >>> out, vjp_fn = vjp(torch.square, torch.tensor([1.0, 2.0]))
        >>> vmap(vjp_fn)(torch.eye(2))
        (tensor([[2., 0.],
                [0., 4.]]),)
    """
    traced = trace(func, None, primals, {}, has_aux, "vjp")
    function = vjp_function(traced, "vjp")

    def vjp_fn(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        grads = tree_unflatten(function(cotangents, retain_graph, create_graph), traced.in_spec)
        return grads if create_graph or requires_grad(cotangents) else traced.result(grads)

    out = traced.result(traced.out)
    return (out, vjp_fn, traced.result(traced.aux)) if has_aux else (out, vjp_fn)


def vjp_function(traced: Trace, name: str) -> Callable[..., list[Any]]:
    """Return ``vjp_fn(cotangents) -> flat gradients`` of a function that has run; these may have a graph to detach."""
    outputs, out_spec = output_tensors(traced.out, name)

    @takes_derivatives
    def function(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> list[Any]:
        vectors, spec = tree_flatten(cotangents)
        same_structure(spec, out_spec)
        if create_graph is None:
            create_graph = torch.is_grad_enabled() and (traced.recorded or any(v.requires_grad for v in vectors))
        return traced.gradients(outputs, vectors, retain=retain_graph, create=create_graph)

    return function


@takes_derivatives
def jvp(func: Callable[..., Any], primals: Any, tangents: Any, *, strict: bool = False, has_aux: bool = False) -> Any:
    """Compute a function and the product of its Jacobian with a vector.

    Signature and results are those of ``torch.func.jvp``
    (https://docs.pytorch.org/docs/stable/generated/torch.func.jvp.html). Inside another jvp, since PyTorch's
    forward mode has one level, and where the primals require grad, since not all its formulas can be differentiated
    again, the vjp, which is linear, is differentiated by its vector instead. So it is where only the tangents are
    batched: a dual tensor has one shape, and the value would be computed for every tangent.

    Args:
        func: takes and returns tensors, or trees of them.
        primals: a tuple of its arguments.
        tangents: a tuple of the same structure and shapes: the vector.
        strict: raise if an output does not depend on the inputs; else its tangent is zero.
        has_aux: whether ``func`` returns ``(output, aux)``.

    Returns:
        ``(output, output tangents)`` or ``(output, output tangents, aux)``.

    Examples:
        >>> import torch
        >>> from vmap_autograd import jvp
        >>> jvp(torch.square, (torch.tensor(3.0),), (torch.tensor(1.0),))
        (tensor(9.), tensor(6.))
    """
    flat, vectors, spec = checked_tangents(primals, tangents)
    flat, vectors = [*map(usable, flat)], [*map(usable, vectors)]
    met = levels_met(func, primals, OWN_TANGENTS)
    further = levels_of(vectors) - met if met is not None else ()
    if not forward_mode_serves(flat) or (further and not any(v.is_complex() for v in vectors)):
        met = None if met is None else levels_of(flat) | (met & levels_of(vectors))
        traced = trace_for_tangents(func, None, primals, {}, has_aux, "jvp", met)
        pushed = linear_map(traced, strict)(vectors)
        pushed = pushed if requires_grad(tangents) else traced.result(pushed)
        pushed = tree_unflatten(pushed, output_tensors(traced.out, "jvp")[1])
        results: tuple[Any, ...] = (traced.result(traced.out), pushed)
        return (*results, traced.result(traced.aux)) if has_aux else results
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip(flat, vectors, strict=True)]
        out, aux = split_aux(func(*tree_unflatten(duals, spec)), has_aux, "jvp")
        outputs, out_spec = output_tensors(out, "jvp")
        unpacked = [forward_ad.unpack_dual(o) for o in outputs]
        if strict and any(u.tangent is None for u in unpacked):
            raise RuntimeError(_INDEPENDENT)
        value = tree_unflatten([u.primal for u in unpacked], out_spec)
        pushed = tree_unflatten(
            [torch.zeros_like(u.primal) if u.tangent is None else u.tangent for u in unpacked], out_spec
        )
        if has_aux:
            leaves, aux_spec = tree_flatten(aux)
            plain = [forward_ad.unpack_dual(a).primal if isinstance(a, Tensor) else a for a in leaves]
            return value, pushed, tree_unflatten(plain, aux_spec)
        return value, pushed


@takes_derivatives
def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """Compute a function, and return it with its linear map of tangents at that point.

    Signature and results are those of ``torch.func.linearize``
    (https://docs.pytorch.org/docs/stable/generated/torch.func.linearize.html). The function runs once, whatever
    number of tangents follows.

    Args:
        func: takes and returns tensors, or trees of them.
        primals: its arguments.

    Returns:
        ``(output, jvp_fn)``: ``jvp_fn(*tangents)`` gives the output's tangents, of the output's structure.

    Examples:
        >>> import torch
        >>> from vmap_autograd import linearize
        >>> out, jvp_fn = linearize(torch.square, torch.tensor(3.0))
        >>> jvp_fn(torch.tensor(1.0)), jvp_fn(torch.tensor(2.0))
        (tensor(6.), tensor(12.))
    """
    traced = trace(func, None, primals, {}, False, "linearize")
    out_spec = output_tensors(traced.out, "linearize")[1]
    apply = linear_map(traced)

    @takes_derivatives
    def jvp_fn(*tangents: Any) -> Any:
        vectors = checked_vectors(traced.inputs, traced.in_spec, tangents)
        pushed = tree_unflatten(apply([*map(usable, vectors)]), out_spec)
        return pushed if requires_grad(tangents) else traced.result(pushed)

    return traced.result(traced.out), jvp_fn


class linear_map:
    """The map from flat input tangents to flat output tangents: the vjp, differentiated by its vector.

    As with `vjp_function`, its results may have a graph to detach.
    """

    def __init__(self, traced: Trace, strict: bool = False) -> None:
        """Record the vjp of a function that has run."""
        self.traced = traced
        self.outputs, _ = output_tensors(traced.out, "jvp")
        dependent = [o for o in self.outputs if o.requires_grad]
        if strict and len(dependent) < len(self.outputs):
            raise RuntimeError(_INDEPENDENT)
        with torch.enable_grad():
            self.vectors = [_zeros_leaf(o) for o in dependent]
            self.grads = gradients(dependent, traced.inputs, self.vectors, True, True, traced.hooks, of_linear=True)

    def __call__(self, tangents: list[Any]) -> list[Any]:
        """Apply it to tangents."""
        create, hooks = self._recorded(tangents), self.traced.hooks
        try:
            found = gradients(self.grads, self.vectors, tangents, True, create, hooks, of_linear=True)
        except RuntimeError:  # a formula has no derivative
            found = [self._of_jacobian(o, tangents, create) for o in self.outputs if o.requires_grad]
        return self._with_zeros(found, ())

    def _of_jacobian(self, output: Any, tangents: list[Any], create: bool) -> Any:
        """Return an output's tangent as the sum of products with the Jacobian, of which each row is a vjp."""

        def row(vector: Any) -> list[Any]:
            return gradients([output], self.traced.inputs, [vector], True, create, self.traced.hooks)

        eye = torch.eye(output.numel(), dtype=output.dtype, device=output.device).reshape(-1, *output.shape)
        parts = [rows.flatten(1) @ t.flatten() for rows, t in zip(vmap(row)(eye), tangents, strict=True)]
        return functools.reduce(torch.add, parts).reshape(output.shape)

    def of_rows(self, rows: list[Any]) -> list[Any] | None:
        """Apply it to rows of tangents; see `gradients_of_rows`."""
        create = self._recorded(rows)
        found = gradients_of_rows(self.grads, self.vectors, rows, create, self.traced.hooks, of_linear=True)
        return None if found is None else self._with_zeros(found, (rows[0].shape[0],))

    def _with_zeros(self, found: list[Any], lead: tuple[int, ...]) -> list[Any]:
        """Return the tangents of all outputs, zeros for those that depend on no input."""
        rest = iter(found)
        return [
            next(rest) if o.requires_grad else torch.zeros((*lead, *o.shape), dtype=o.dtype, device=o.device)
            for o in self.outputs
        ]

    def _recorded(self, tangents: list[Any]) -> bool:
        return torch.is_grad_enabled() and (self.traced.recorded or any(t.requires_grad for t in tangents))


def _zeros_leaf(x: Any) -> Any:
    leaf = own_samples(torch.zeros_like(detached(x)), frozenset(below_levels(x)[1]))
    make_leaf(leaf)
    return leaf
