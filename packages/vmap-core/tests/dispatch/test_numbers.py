"""Numbers of each sample's own (alpha, beta, value) against the loop, which reads them."""

import pytest
import torch

from vmap_core import DataDependentError, compile, fallback_policy, vmap

torch.manual_seed(0)
D = torch.double
X = torch.rand(2, 4, 3, dtype=D) + 0.5
M = torch.rand(3, 3, dtype=D)

CASES = {
    "add": lambda x, n: torch.add(x, x.sin(), alpha=n),
    "add, by names": lambda x, n: torch.add(input=x, other=x.sin(), alpha=n),
    "add a number": lambda x, n: x.add(2, alpha=n),
    "add, shared": lambda x, n: torch.add(M, M, alpha=n),
    "add_": lambda x, n: (x * 2).add_(x, alpha=-n),
    "add_ to what all shared": lambda x, n: torch.zeros(3, dtype=D).add_(M[0], alpha=n),
    "sub": lambda x, n: torch.sub(x, x.sin(), alpha=n),
    "sub_": lambda x, n: (x * 2).subtract_(x, alpha=n),
    "rsub": lambda x, n: torch.rsub(x, x.sin(), alpha=n),
    "addcmul": lambda x, n: torch.addcmul(x, x, x.sin(), value=n),
    "addcdiv_": lambda x, n: (x * 2).addcdiv_(x.sin(), x, value=-n),
    "addmm": lambda x, n: torch.addmm(M, M * x, M, beta=n, alpha=n + 1),
    "addmv_": lambda x, n: (x * 2).addmv_(M, x, beta=n),
    "addmv, beta alone": lambda x, n: torch.addmv(x, M, x, beta=2, alpha=n),
    "addr": lambda x, n: torch.addr(M, x, x, alpha=n),
    "baddbmm": lambda x, n: torch.baddbmm(M[None], (M * x)[None], M[None], alpha=n),
    "addbmm": lambda x, n: torch.addbmm(M, (M * x)[None], M[None], beta=n),
    "_foreach_add": lambda x, n: torch._foreach_add([x, x * 2], [x.sin(), x], alpha=n)[1],
    "_foreach_sub_": lambda x, n: torch._foreach_sub_(ys := [x * 1, x * 2], [x, x], alpha=n) and ys[0],
    "another dtype": lambda x, n: torch.add(x.float(), x.float(), alpha=n),
    "of whole numbers": lambda x, n: torch.add(x.long(), x.long(), alpha=n.long() + 2),
}


def loop(f):
    return lambda xs: torch.stack([f(x) for x in xs])


@pytest.mark.parametrize("f", CASES.values(), ids=CASES)
def test_against_the_loop(f):
    one = lambda x: f(x, x[0])  # noqa: E731
    with fallback_policy("error"):
        torch.testing.assert_close(vmap(one)(X[0]), loop(one)(X[0]))
        torch.testing.assert_close(vmap(one)(X[0, :1]), loop(one)(X[0, :1]))
        torch.testing.assert_close(vmap(one, in_dims=1)(X[0].T.contiguous()), loop(one)(X[0]))
        torch.testing.assert_close(vmap(vmap(one))(X), loop(loop(one))(X))
    program = compile(vmap(one))
    program(X[0])
    torch.testing.assert_close(program(X[1]), loop(one)(X[1]))


def test_it_is_a_constant_to_autograd():
    n = torch.rand(4, dtype=D, requires_grad=True)
    x = torch.rand(4, 3, dtype=D, requires_grad=True)
    out = vmap(lambda x, n: torch.add(x, x, alpha=n))(x, n.detach())
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], (1 + n.detach())[:, None].expand(4, 3))


@pytest.mark.parametrize("number", [torch.rand(4), torch.rand(4) * 1j])
def test_refused_as_in_the_loop(number):
    f = lambda n: torch.add(torch.ones(3, dtype=torch.long), 1, alpha=n)  # noqa: E731
    with pytest.raises(RuntimeError) as theirs:
        f(number[0])
    with pytest.raises(RuntimeError) as ours:
        vmap(f)(number)
    assert str(ours.value) == str(theirs.value)


def test_a_tensor_with_dims_is_no_number():
    with pytest.raises(TypeError):
        vmap(lambda x: torch.add(x, x, alpha=x))(X[0])


def test_where_the_operation_is_not_linear_in_it_the_value_is_read():
    with pytest.raises(DataDependentError):
        vmap(lambda x: torch.nn.functional.celu(x, alpha=x[0]))(X[0])


@pytest.mark.filterwarnings("ignore::vmap_core.FallbackWarning")
def test_an_operator_that_writes_to_several_arguments():
    """The scale of mixed precision, and how long it has grown."""

    def f(x):
        scale, grown = torch.tensor(4.0), torch.tensor(0, dtype=torch.int32)
        torch._amp_update_scale_(scale, grown, (x[:1] > 1).float(), 2.0, 0.5, 2)
        return scale, grown

    scales, grown = vmap(f)(X[0])
    for i, x in enumerate(X[0]):
        torch.testing.assert_close((scales[i], grown[i]), f(x))
