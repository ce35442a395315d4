"""What the transforms say of wrong uses: the class and text of the installed torch.func."""

import warnings

import pytest
import torch

import vmap_autograd
from vmap_core import VmapError, vmap

X = torch.arange(1.0, 5.0)
Z = X * 1j


def s(x, *rest):
    return x.square().sum()


def f(x, *rest):
    return x.square()


def pair(x):
    return x, 3


SITUATIONS = {
    "argnums too large": lambda t, name: getattr(t, name)(s, argnums=1)(X),
    "argnums too small": lambda t, name: getattr(t, name)(s, argnums=-2)(X),
    "argnums of a tuple too large": lambda t, name: getattr(t, name)(s, argnums=(0, 5))(X, X),
    "argnums no number": lambda t, name: getattr(t, name)(s, argnums="x")(X),
    "argnums a list": lambda t, name: getattr(t, name)(s, argnums=[0])(X),
    "argnums with no number": lambda t, name: getattr(t, name)(s, argnums=("x",))(X),
    "argnums empty": lambda t, name: getattr(t, name)(s, argnums=())(X),
    "argnums twice": lambda t, name: getattr(t, name)(s, argnums=(0, 0))(X, X),
    "argnums twice, once from the end": lambda t, name: getattr(t, name)(s, argnums=(0, -2))(X, X),
    "no pair": lambda t, name: getattr(t, name)(s, has_aux=True)(X),
    "three for a pair": lambda t, name: getattr(t, name)(lambda x: (s(x), x, x), has_aux=True)(X),
    "an output that is no tensor": lambda t, name: getattr(t, name)(lambda x: 3)(X),
    "an output that is None": lambda t, name: getattr(t, name)(lambda x: None)(X),
    "an output among others": lambda t, name: getattr(t, name)(pair)(X),
    "no output": lambda t, name: getattr(t, name)(lambda x: ())(X),
}
GRADS = {
    "a vector": lambda t, name: getattr(t, name)(f)(X),
    "one element": lambda t, name: getattr(t, name)(f)(X[:1]),
    "integers": lambda t, name: getattr(t, name)(s)(torch.arange(3)),
    "an argument that is no tensor": lambda t, name: getattr(t, name)(s)(3.0),
}
JACOBIANS = {
    "complex input": lambda t, name: getattr(t, name)(lambda z: z.abs())(Z),
    "complex output": lambda t, name: getattr(t, name)(lambda x: x * 0.5j)(X),
}
CALLS = {
    "vjp, an output that is no tensor": lambda t: t.vjp(pair, X),
    "vjp, no output": lambda t: t.vjp(lambda x: [], X),
    "vjp, integers": lambda t: t.vjp(lambda x: x.argsort(), X),
    "vjp, no pair": lambda t: t.vjp(s, X, has_aux=True),
    "vjp, an argument that is no tensor": lambda t: t.vjp(s, 3.0),
    "vjp, structure": lambda t: t.vjp(f, X)[1]((X, X)),
    "vjp, structure of a dict": lambda t: t.vjp(lambda x: {"a": x, "b": [x]}, X)[1]({"a": X}),
    "vjp, shape": lambda t: t.vjp(f, X)[1](X[:2]),
    "jvp, no tuple": lambda t: t.jvp(f, X, X),
    "jvp, tangents no tuple": lambda t: t.jvp(f, (X,), X),
    "jvp, structure": lambda t: t.jvp(f, (X,), (X, X)),
    "jvp, shape": lambda t: t.jvp(f, (X,), (X[:2],)),
    "jvp, a primal that is no tensor": lambda t: t.jvp(f, (3.0,), (X,)),
    "jvp, a tangent that is no tensor": lambda t: t.jvp(f, (X,), (3.0,)),
    "jvp, no primal": lambda t: t.jvp(lambda: X, (), ()),
    "jvp, an output that is no tensor": lambda t: t.jvp(pair, (X,), (X,)),
    "jvp, no output": lambda t: t.jvp(lambda x: (), (X,), (X,)),
    "jvp, no pair": lambda t: t.jvp(f, (X,), (X,), has_aux=True),
    "jvp, strict": lambda t: t.jvp(lambda x: torch.ones(2), (X,), (X,), strict=True),
    "linearize, structure": lambda t: t.linearize(f, X)[1](X, X),
    "linearize, shape": lambda t: t.linearize(f, X)[1](X[:2]),
    "linearize, dtype": lambda t: t.linearize(f, X)[1](X.double()),
    "jacrev, an argument that is no tensor": lambda t: t.jacrev(s)(3.0),
    "jacrev, integers": lambda t: t.jacrev(lambda x: x.argsort())(X),
    "jacrev, chunk_size": lambda t: t.jacrev(f, chunk_size=0)(X),
    "hessian, argnums too large": lambda t: t.hessian(s, argnums=1)(X),
    "hessian, argnums empty": lambda t: t.hessian(s, argnums=())(X),
    "hessian, an output that is no tensor": lambda t: t.hessian(lambda x: 3)(X),
    **{
        f"{name}, {what}": lambda t, call=call, name=name: call(t, name)
        for name in ("grad", "grad_and_value", "jacrev", "jacfwd")
        for what, call in {**SITUATIONS, **(GRADS if name.startswith("grad") else JACOBIANS)}.items()
    },
}


def error_of(run):
    try:
        run()
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "mapped"])
@pytest.mark.parametrize("what", CALLS)
def test_class_and_text_are_those_of_torch_func(what, mapped):
    """Inside a mapped function too; a class of ours derives from PyTorch's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # linearize traces
        theirs = error_of(lambda: CALLS[what](torch.func))
    assert theirs is not None

    def call(_):
        return CALLS[what](vmap_autograd)

    ours = error_of(lambda: (vmap(call) if mapped else call)(X))
    assert str(ours) == str(theirs)
    assert type(ours) is type(theirs) or (isinstance(ours, VmapError) and isinstance(ours, type(theirs)))


def test_an_argument_of_jacfwd_that_is_no_tensor():
    """torch.func stumbles over it; the text is that of its other transforms."""
    with pytest.raises(ValueError, match="must be Tensor, got <class 'float'>"):
        vmap_autograd.jacfwd(s)(3.0)
