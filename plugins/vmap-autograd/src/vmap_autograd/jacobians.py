"""`jacrev`, `jacfwd` and `hessian`, with torch.func's signatures.

The function runs once. What is mapped are vectors: the rows of the identity, pulled back by the backward pass or
pushed forward as tangents, all at once or in chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad

from vmap_core.extend import ComplexGraphError, InplaceError, Parts, lowered_map, made_by

from ._checks import Argnums, only_tensors, output_tensors, refuse_complex, replaced, select, split_aux
from ._state import takes_derivatives, usable
from ._torch import transforms_active, tree_flatten, tree_unflatten
from ._trace import forward_mode_serves, gradients_of_rows, mixed, physical, trace, trace_for_tangents
from .transforms import linear_map


def jacrev(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian by reverse mode: best with fewer outputs than inputs.

    Signature and results are those of ``torch.func.jacrev``
    (https://docs.pytorch.org/docs/stable/generated/torch.func.jacrev.html).

    Args:
        func: takes and returns tensors, or trees of them.
        argnums: the argument, or arguments, to differentiate by.
        has_aux: whether ``func`` returns ``(output, aux)``; then the result is ``(jacobian, aux)``.
        chunk_size: rows of the Jacobian computed at a time; None for all. 1 takes row by row, without vmap.

    Returns:
        A function whose result has the structure of the output, with the structure of the argument in it: tensors of
        shape ``(*output.shape, *input.shape)``.

    Raises:
        ValueError: ``chunk_size`` is not positive.
        UnsupportedError: an input or output is complex, as in torch.func; take ``torch.view_as_real`` of it.

    Examples:
        >>> import torch
        >>> from vmap_autograd import jacrev
        >>> jacrev(torch.square)(torch.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    _check(chunk_size, "jacrev")

    @takes_derivatives
    @functools.wraps(func)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        traced = trace(func, argnums, args, kwargs, has_aux, "jacrev")
        refuse_complex(traced.inputs, args, "jacrev", is_input=True)
        outputs, out_spec = output_tensors(traced.out, "jacrev")
        refuse_complex(outputs, outputs, "jacrev", is_input=False)
        create = torch.is_grad_enabled() and traced.recorded

        def pull(vectors: list[Any]) -> list[Any]:
            return traced.gradients(outputs, vectors, True, create)

        def pull_rows(rows: list[Any]) -> list[Any] | None:
            return gradients_of_rows(outputs, traced.inputs, rows, create, traced.hooks)

        size = 1 if mixed(outputs, traced.inputs) else chunk_size  # else vectors would be computed with
        rows = traced.result(_by_rows(pull, outputs, size, pull_rows))
        parts = [x.split([o.numel() for o in outputs]) for x in rows]
        blocks = [
            [parts[j][i].reshape((*o.shape, *x.shape)) for j, x in enumerate(traced.inputs)]
            for i, o in enumerate(outputs)
        ]
        result = tree_unflatten([tree_unflatten(b, traced.in_spec) for b in blocks], out_spec)
        return (result, traced.result(traced.aux)) if has_aux else result

    return made_by(jacobian, jacrev, func, argnums, has_aux=has_aux, chunk_size=chunk_size)


def jacfwd(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian by forward mode: best with fewer inputs than outputs.

    Signature and results are those of ``torch.func.jacfwd``
    (https://docs.pytorch.org/docs/stable/generated/torch.func.jacfwd.html), with ``chunk_size`` in addition. The
    function runs once, or once per chunk; where it draws random numbers these are the same for all columns.

    Args:
        func: takes and returns tensors, or trees of them.
        argnums: the argument, or arguments, to differentiate by.
        has_aux: whether ``func`` returns ``(output, aux)``; then the result is ``(jacobian, aux)``.
        randomness: accepted for torch.func's sake; see above.
        chunk_size: columns of the Jacobian computed at a time; None for all.

    Returns:
        As `jacrev`.

    Raises:
        ValueError: ``chunk_size`` is not positive.
        UnsupportedError: an input or output is complex, as in torch.func; take ``torch.view_as_real`` of it.

    Examples:
        >>> import torch
        >>> from vmap_autograd import jacfwd
        >>> jacfwd(lambda x: torch.stack([x.sum(), x.prod()]))(torch.tensor([2.0, 3.0]))
        tensor([[1., 1.],
                [3., 2.]])
    """
    _check(chunk_size, "jacfwd")

    @takes_derivatives
    @functools.wraps(func)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        chosen = select(args, argnums)
        inputs, in_spec = tree_flatten(chosen)
        only_tensors(inputs)
        refuse_complex(inputs, args, "jacfwd", is_input=True)
        inputs = [usable(x) for x in inputs]
        found: dict[str, Any] = {}
        if not forward_mode_serves(inputs):
            traced = trace_for_tangents(func, argnums, args, kwargs, has_aux, "jacfwd")
            outputs, found["spec"] = output_tensors(traced.out, "jacfwd")
            refuse_complex(outputs, outputs, "jacfwd", is_input=False)
            found["shapes"], found["aux"] = [o.shape for o in outputs], traced.result(traced.aux)
            push = linear_map(traced)
            columns = traced.result(_by_rows(push, inputs, chunk_size, push.of_rows))
        else:

            def push_forward(tangents: list[Any]) -> list[Any]:
                with forward_ad.dual_level():
                    duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
                    out = func(*replaced(args, argnums, tree_unflatten(duals, in_spec)), **kwargs)
                    out, aux = split_aux(out, has_aux, "jacfwd")
                    outputs, found["spec"] = output_tensors(out, "jacfwd")
                    refuse_complex(outputs, outputs, "jacfwd", is_input=False)
                    found["shapes"], found["aux"] = [o.shape for o in outputs], aux
                    pairs = [forward_ad.unpack_dual(o) for o in outputs]
                    return [torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in pairs]

            columns = _by_rows(push_forward, inputs, chunk_size)
        sizes = [x.numel() for x in inputs]
        blocks = []
        for shape, c in zip(found["shapes"], columns, strict=True):
            own = [
                part.movedim(0, -1).reshape((*shape, *x.shape)) for part, x in zip(c.split(sizes), inputs, strict=True)
            ]
            blocks.append(tree_unflatten(own, in_spec))
        result = tree_unflatten(blocks, found["spec"])
        return (result, found["aux"]) if has_aux else result

    return made_by(jacobian, jacfwd, func, argnums, has_aux, randomness=randomness, chunk_size=chunk_size)


def hessian(func: Callable[..., Any], argnums: Argnums = 0, *, chunk_size: int | None = None) -> Callable[..., Any]:
    """Return a function that computes the Hessian: the Jacobian of the gradient.

    Signature and results are those of ``torch.func.hessian``
    (https://docs.pytorch.org/docs/stable/generated/torch.func.hessian.html), with ``chunk_size`` in addition.

    Args:
        func: takes tensors, or trees of them, and returns a tensor or a tree of tensors.
        argnums: the argument, or arguments, to differentiate by.
        chunk_size: rows computed at a time; None for all.

    Examples:
        >>> import torch
        >>> from vmap_autograd import hessian
        >>> hessian(lambda x: x.prod())(torch.tensor([2.0, 3.0]))
        tensor([[0., 1.],
                [1., 0.]])
    """
    return jacrev(jacrev(func, argnums), argnums, chunk_size=chunk_size)


def _check(chunk_size: int | None, name: str) -> None:
    if chunk_size is not None and chunk_size <= 0:
        raise ValueError(f"{name}: `chunk_size` should be greater than 0.")


def _by_rows(
    function: Callable[[list[Any]], list[Any]], like: list[Any], chunk_size: int | None,
    of_rows: Callable[[list[Any]], list[Any] | None] = lambda rows: None,
) -> list[Any]:  # fmt: skip
    """Apply a linear function to every row of the identity.

    Args:
        function: takes a list of vectors, one for each of ``like``, and only hands them to PyTorch.
        like: tensors whose elements, one after the other, number the rows.
        chunk_size: rows at a time.
        of_rows: the same function of several vectors at once; None of those that it does not take.

    Returns:
        The results, ``(all rows, *)`` each.
    """
    count = sum(x.numel() for x in like)
    step = count if chunk_size is None else chunk_size
    if transforms_active():  # of torch.func, which would record the lowered operations
        step = 1
    joined: list[Parts] = []
    for start in range(0, max(count, 1), max(step, 1)):
        rows = [physical(v) for v in _identity_rows(like, start, min(start + step, count))]
        if rows[0].shape[0] == 1:
            chunk = [x.unsqueeze(0) for x in function([v[0] for v in rows])]
        else:
            try:
                chunk = of_rows(rows) or lowered_map(function, rows)
            except (ComplexGraphError, InplaceError):  # a formula writes them into a tensor that is not lowered
                return _by_rows(function, like, 1)
        if step >= count:
            return chunk
        joined = joined or [Parts(count, 0) for _ in chunk]
        for parts in reversed(joined):
            parts.add(chunk.pop())
    return [parts.whole() for parts in joined]


def _identity_rows(like: list[Any], start: int, stop: int) -> list[Any]:
    """Return rows ``start`` to ``stop`` of the identity, cut into pieces of the shapes of some tensors."""
    pieces, offset = [], 0
    for x in like:
        size = x.numel()
        piece = torch.zeros(stop - start, size, dtype=x.dtype, device=x.device)
        piece.diagonal(start - offset).fill_(1)
        pieces.append(piece.reshape((stop - start, *x.shape)))
        offset += size
    return pieces
