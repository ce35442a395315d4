"""`torch.func`'s transforms inside a mapped function: they are ours there, since PyTorch's cannot see our tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmap_core.extend import Patch, current_levels, in_bodies

from . import transforms
from ._checks import replaced, select


def _grad(func: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
    return transforms.grad(func, argnums, has_aux)(*args, **kwargs)


def _grad_and_value(func: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
    return transforms.grad_and_value(func, argnums, has_aux)(*args, **kwargs)


def _vjp(func: Any, *primals: Any, argnums: Any = None, has_aux: bool = False) -> Any:
    if argnums is None:
        return transforms.vjp(func, *primals, has_aux=has_aux)
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)

    def of_chosen(*chosen: Any) -> Any:
        return func(*replaced(primals, numbers, chosen))

    out, pull, *aux = transforms.vjp(of_chosen, *select(primals, numbers), has_aux=has_aux)

    def vjp_fn(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        grads = pull(cotangents, retain_graph, create_graph)
        return grads if isinstance(argnums, tuple) else grads[0]

    return (out, vjp_fn, *aux)


def _jvp(func: Any, primals: Any, tangents: Any, argnums: Any, *, strict: bool = False, has_aux: bool) -> Any:
    if argnums is None:
        return transforms.jvp(func, primals, tangents, strict=strict, has_aux=has_aux)
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)

    def of_chosen(*chosen: Any) -> Any:
        return func(*replaced(primals, numbers, chosen))

    return transforms.jvp(of_chosen, select(primals, numbers), tangents, strict=strict, has_aux=has_aux)


def _choosing(ours: Any) -> Callable[[Any], Any]:
    """Make a function that is ours inside mapped functions."""

    def make(native: Any) -> Any:
        def choice(*args: Any, **kwargs: Any) -> Any:
            return (ours if current_levels() else native)(*args, **kwargs)

        choice._torchdynamo_inline = in_bodies(ours, native)  # type: ignore[attr-defined]
        return choice

    return make


# What PyTorch's transforms look up on every call. jacrev, jacfwd and hessian are made of these, and of torch.vmap, which
# the core replaces.
PATCHES = [
    Patch(
        f"torch._functorch.eager_transforms.{name}",
        _choosing(ours),
        "torch.func's transforms cannot see batched tensors: inside mapped functions they are ours.",
        holders=("torch.func",),
    )
    for name, ours in {
        "grad_impl": _grad,
        "grad_and_value_impl": _grad_and_value,
        "_vjp_with_argnums": _vjp,
        "_jvp_with_argnums": _jvp,
        "linearize": transforms.linearize,
    }.items()
]
