"""What a transform is given, checked as torch.func checks it: with its own functions where it has one for that.

A message names what torch.func computes the transform by: `jacrev` is a vjp, `jacfwd` a jvp.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vmap_core.extend import UnsupportedError

from . import _torch
from ._torch import TreeSpec, tree_flatten

Argnums = int | tuple[int, ...]

_NAMES = {
    "grad": "grad_and_value(f)(*args)",
    "grad_and_value": "grad_and_value(f)(*args)",
    "vjp": "vjp(f, *primals)",
    "jacrev": "vjp(f, *primals)",
    "jvp": _torch.jvp_str,
    "jacfwd": _torch.jvp_str,
    "linearize": _torch.jvp_str,
}


def only_tensors(flat: list[Any]) -> None:
    """Refuse to differentiate by what is no tensor."""
    for x in flat:
        if not isinstance(x, Tensor):
            raise ValueError(f"Thing passed to transform API must be Tensor, got {type(x)}")


def select(args: tuple[Any, ...], argnums: Argnums) -> Any:
    """Return the arguments that ``argnums`` names: one, or a tuple of them.

    Raises:
        RuntimeError: there is no such argument, or one is named twice.
    """
    return _torch.slice_argnums(args, argnums, as_tuple=False)


def replaced(args: tuple[Any, ...], argnums: Argnums, chosen: Any) -> tuple[Any, ...]:
    """Return the arguments with those that ``argnums`` names replaced."""
    new = list(args)
    numbers, values = (argnums, chosen) if isinstance(argnums, tuple) else ((argnums,), (chosen,))
    for n, value in zip(numbers, values, strict=True):
        new[n] = value
    return tuple(new)


def split_aux(out: Any, has_aux: bool, name: str) -> tuple[Any, Any]:
    """Return the output and the auxiliary one.

    Raises:
        RuntimeError: with ``has_aux``, and the function did not return a pair.
    """
    if not has_aux:
        return out, None
    if not (isinstance(out, tuple) and len(out) == 2):
        raise RuntimeError(f"{_NAMES[name]}: output of function f should be a tuple: (output, aux) if has_aux is True")
    return out


def output_tensors(out: Any, name: str) -> tuple[list[Any], TreeSpec]:
    """Return the tensors of an output, and their structure.

    Raises:
        RuntimeError: there is something else in it, or nothing; of a vjp, integers.
    """
    flat, spec = tree_flatten(out)
    _torch.assert_non_empty_tensor_output(flat, _NAMES[name])
    for o in flat if name in ("vjp", "jacrev") else ():
        if not (o.is_floating_point() or o.is_complex()):
            raise RuntimeError(
                f"vjp(f, ...): All outputs of f must be floating-point or complex Tensors, got Tensor with dtype {o.dtype}"
            )
    return flat, spec


def scalar(out: Any) -> Any:
    """Return the output of a function that has a gradient.

    Raises:
        RuntimeError: it is no scalar tensor.
    """
    head = f"{_NAMES['grad']}: Expected f(*args) to return a "
    if not isinstance(out, Tensor):
        raise RuntimeError(f"{head}Tensor, got {type(out)}")
    if out.dim() != 0:
        raise RuntimeError(
            f"{head}scalar Tensor, got tensor with {out.dim()} dims. Maybe you wanted to use the vjp or jacrev APIs "
            f"instead?"
        )
    return out


def refuse_complex(tensors: list[Any], whole: Any, name: str, is_input: bool) -> None:
    """Refuse a Jacobian of complex tensors: the two modes would keep different conventions, and rows lose a part.

    Args:
        tensors: the inputs differentiated by, or the outputs.
        whole: what they are among, in which the message counts.
        name: the transform.
        is_input: whether they are the inputs.
    """
    if any(isinstance(x, Tensor) and x.is_complex() for x in tensors):
        try:
            _torch.error_if_complex(name, whole, is_input)
        except RuntimeError as error:
            raise UnsupportedError(str(error)) from None


def same_structure(cotangents: TreeSpec, outputs: TreeSpec) -> None:
    """Refuse cotangents of another structure than the outputs have."""
    if cotangents != outputs:
        raise RuntimeError(
            f"Expected pytree structure of cotangents to be the same as pytree structure of outputs to the function. "
            f"cotangents: {_torch.treespec_pprint(cotangents)}, primal output: {_torch.treespec_pprint(outputs)}"
        )


def checked_tangents(primals: Any, tangents: Any) -> tuple[list[Any], list[Any], TreeSpec]:
    """Return the primals and tangents of a jvp, flat, and their structure."""
    name = _NAMES["jvp"]
    if not isinstance(primals, tuple):
        raise RuntimeError(f"{name}: Expected primals to be a tuple. E.g. it should be valid to call f(*primals).")
    flat, spec = tree_flatten(primals)
    flat_tangents, tangents_spec = tree_flatten(tangents)
    if spec != tangents_spec:
        raise RuntimeError(
            f"{name}: Expected primals and tangents to have the same python structure. For example, if primals is a "
            f"tuple of 3 tensors, tangents also must be. Got primals with structure {spec} and tangents with structure "
            f"{tangents_spec}"
        )
    _torch.assert_non_empty_list_of_tensors(flat, name, "primals")
    _torch.assert_non_empty_list_of_tensors(flat_tangents, name, "tangents")
    for p, t in zip(flat, flat_tangents, strict=True):
        if p.shape != t.shape:
            raise RuntimeError(
                f"Trying to set a forward gradient that has a different size than that of the original Tensor, this is "
                f"not supported. Tensor is of size {list(p.shape)} while the given forward gradient is of size "
                f"{list(t.shape)}."
            )
    return flat, flat_tangents, spec


def checked_vectors(primals: list[Any], spec: TreeSpec, tangents: Any) -> list[Any]:
    """Return the tangents for a function made by `linearize`, flat."""
    flat, tangents_spec = tree_flatten(tangents)
    if tangents_spec != spec:
        raise RuntimeError(f"Expected the tangents {tangents_spec} to have the same argspec as the primals {spec}")
    for i, (p, t) in enumerate(zip(primals, flat, strict=True)):
        for what in ("shape", "device", "dtype"):
            got, wanted = getattr(t, what), getattr(p, what)
            if got != wanted:
                raise RuntimeError(
                    f"tangent:{i} with {what} {got} in flattened pytree doesn't match the {what} {wanted} of the "
                    f"corresponding primal."
                )
    return flat
