"""Scaled dot product attention against the loop, and the kernels it keeps."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils._python_dispatch import TorchDispatchMode

from vmap_autograd import grad, hessian, jacfwd, jacrev, jvp, linearize
from vmap_core import vmap
from vmap_core.testing import check_rule

torch.manual_seed(0)
D = torch.double


def qkv(*lead, length=4, source=5):
    return [torch.randn(*lead, n, 3, dtype=D) for n in (length, source, source)]


MASK = torch.ones(4, 5, dtype=torch.bool).tril(1)
CASES = {
    "(L, E)": (qkv(), {}),
    "(H, L, E)": (qkv(2), {}),
    "(N, H, L, E)": (qkv(2, 3), {}),
    "five dims": (qkv(2, 1, 2), {}),
    "scale": (qkv(2), {"scale": 0.3}),
    "causal": (qkv(2, 2, source=4), {"is_causal": True}),
    "boolean mask": ([*qkv(2, 2), MASK], {}),
    "float mask a head": ([*qkv(2, 2), torch.randn(2, 4, 5, dtype=D)], {}),
    "float mask an N": ([*qkv(2, 2), torch.randn(2, 1, 4, 5, dtype=D)], {}),
    "mask of (H, L, E)": ([*qkv(2), torch.randn(4, 5, dtype=D)], {}),
    "grouped queries": ([torch.randn(2, 4, 4, 3, dtype=D), *(torch.randn(2, 2, 5, 3, dtype=D) for _ in range(2))], {"enable_gqa": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    args, options = CASES[name]
    check_rule(sdpa, *args, **options)


def test_the_fused_kernel_is_kept():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    q, k, v = (torch.randn(3, 2, 8, 16, requires_grad=True) for _ in range(3))
    with Watch():
        vmap(sdpa)(q, k, v).sum().backward()
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    assert seen.count(flash.default) == 1 and torch.ops.aten.bmm.default not in seen


@pytest.mark.parametrize("mask", [None, (4, 5), (2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5)], ids=str)
def test_the_cpus_own_operator(mask):
    """Its second result is the logsumexp; PyTorch's decomposition returns the weights in its place."""
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    bias = () if mask is None else (torch.randn(mask, dtype=D),)
    check_rule(lambda q, k, v, *bias: op(*(t.contiguous() for t in (q, k, v)), attn_mask=bias[0] if bias else None, scale=0.3),
               *qkv(2, 3), *bias)  # fmt: skip
    with torch.no_grad():
        q, k, v = qkv(2, 2, 3)
        scores = q @ k.mT * 3**-0.5
        torch.testing.assert_close(vmap(op)(q, k, v)[1], scores.logsumexp(-1))


def test_dropout_and_randomness():
    q, k, v = (torch.ones(3, 2, 4, 4) for _ in range(3))
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda q, k, v: sdpa(q, k, v, dropout_p=0.5))(q, k, v)
    same = vmap(lambda q, k, v: sdpa(q, k, v, dropout_p=0.5), randomness="same")(q, k, v)
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    torch.manual_seed(0)
    different = vmap(lambda q, k, v: sdpa(q, k, v, dropout_p=0.5), randomness="different")(q, k, v)
    assert not torch.equal(different[0], different[1])


ONE = {
    "(L, E)": ((3, 4), {}),
    "(H, L, E)": ((2, 3, 4), {}),
    "(N, H, L, E)": ((2, 2, 3, 4), {}),
    "causal": ((2, 3, 4), {"is_causal": True}),
    "boolean mask": ((2, 3, 4), {"attn_mask": torch.ones(3, 3, dtype=torch.bool).tril(1)}),
    "float mask": ((2, 2, 3, 4), {"attn_mask": torch.randn(2, 1, 3, 3, dtype=D)}),
}


@pytest.mark.filterwarnings("error::vmap_core.FallbackWarning")
@pytest.mark.parametrize("name", ONE)
def test_derivatives_against_the_formula(name):
    """Jacobians by one batched backward pass; tangents, which the fused kernels have not."""
    shape, options = ONE[name]
    f = lambda v: sdpa(v, v.sin(), v, **options)  # noqa: E731
    x, d = torch.randn(2, *shape, dtype=D), torch.randn(2, *shape, dtype=D)

    def formula(v):
        with sdpa_kernel(SDPBackend.MATH):
            return f(v)

    def looped(derivative):
        return torch.stack([derivative(a) for a in x])

    torch.testing.assert_close(vmap(jacrev(f))(x), looped(lambda a: torch.autograd.functional.jacobian(formula, a)))
    tangents = torch.stack([torch.autograd.functional.jvp(formula, a, b)[1] for a, b in zip(x, d, strict=True)])
    torch.testing.assert_close(vmap(lambda a, b: jvp(f, (a,), (b,))[1])(x, d), tangents)


def squares(f):
    return lambda v: f(v).square().sum()


SECOND = {
    "the gradient's gradient": lambda f: grad(squares(grad(squares(f)))),
    "a third derivative": lambda f: grad(squares(grad(squares(grad(squares(f)))))),
    "hessian": lambda f: hessian(squares(f)),
    "jacrev of jacrev": lambda f: jacrev(jacrev(lambda v: f(v).sum(-1))),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(squares(f))),
    "jacrev's gradient": lambda f: grad(squares(jacrev(lambda v: f(v).sum(-1)))),
    "linearize": lambda f: lambda v: linearize(f, v)[1](v),
    "hvp": lambda f: lambda v: jvp(grad(squares(f)), (v,), (v,))[1],
}


@pytest.mark.filterwarnings("error::vmap_core.FallbackWarning")
@pytest.mark.parametrize("derivative", SECOND.values(), ids=SECOND)
@pytest.mark.parametrize("name", [name for name in ONE if "N" not in name and name != "float mask"])
def test_second_derivatives(name, derivative):
    """Of samples of rank 2 and 3, for which PyTorch has them; its fused kernels, which serve them here, have not."""
    shape, options = ONE[name]
    f = lambda v: sdpa(v, v.sin(), v * 2, **options)  # noqa: E731

    def formula(v):
        with sdpa_kernel(SDPBackend.MATH):
            return f(v)

    x = torch.randn(2, *shape, dtype=D)
    expected = torch.stack([derivative(formula)(r) for r in x])
    torch.testing.assert_close(vmap(derivative(f))(x), expected)
    torch.testing.assert_close(vmap(derivative(f))(x[:1]), expected[:1])
    torch.testing.assert_close(vmap(derivative(f), in_dims=-1)(x.movedim(0, -1)), expected)


def test_second_derivatives_outside_and_nested():
    f = lambda v: sdpa(v, v.sin(), v * 2)  # noqa: E731

    def formula(v):
        with sdpa_kernel(SDPBackend.MATH):
            return torch.stack([torch.stack([f(r) for r in rows]) for rows in v])

    x = torch.randn(2, 3, 2, 3, 4, dtype=D)
    for derivative in (SECOND["the gradient's gradient"], SECOND["linearize"]):
        torch.testing.assert_close(derivative(vmap(vmap(f)))(x), derivative(formula)(x))


def test_derivatives_of_the_kernel_without_a_graph():
    q, k, v = (torch.randn(3, 4, 5, dtype=D, requires_grad=i != 1) for i in range(3))
    ours = torch.autograd.grad(vmap(sdpa)(q, k, v).sin().sum(), (q, v))
    theirs = torch.autograd.grad(torch.stack([sdpa(*r) for r in zip(q, k, v, strict=True)]).sin().sum(), (q, v))
    torch.testing.assert_close(ours, theirs)
