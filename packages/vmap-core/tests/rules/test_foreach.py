"""torch._foreach_*: every form of arguments that PyTorch takes, out of place and in place."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vmap_core import vmap
from vmap_core.testing import check_rule

A, B = torch.rand(3) + 0.5, torch.rand(2, 3) + 0.5
OTHERS = [B[0], B * 2]
FORMS = {
    "alone": (),
    "number": (2,),
    "numbers": ([2.0, 3.0],),
    "list": (OTHERS,),
    "two lists": (OTHERS, [A, B]),
    "two lists and a number": (OTHERS, [A, B], 2.0),
    "two lists and numbers": (OTHERS, [A, B], [1.0, 2.0]),
    "list and a number": (OTHERS, 0.3),
    "list and numbers": (OTHERS, [0.3, 0.2]),
}
NAMES = sorted(n for n in dir(torch) if n.startswith("_foreach_") and not n.endswith("_"))
WITHOUT_DERIVATIVE = {"_foreach_powsum"}  # in PyTorch
WITHOUT_INPLACE_DERIVATIVE = {"_foreach_maximum", "_foreach_minimum"}


def accepts(function, *args):
    try:
        function([A.clone(), B.clone()], *args)
    except (TypeError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("_foreach_mm", "_foreach_copy", "_foreach_zero")])
def test_forms(name):
    function, inplace = getattr(torch, name), getattr(torch, name + "_", None)
    forms = [args for args in FORMS.values() if accepts(function, *args)]
    assert forms
    for args in forms:
        assert check_rule(function, [A, B], *args, nested=False, gradients=name not in WITHOUT_DERIVATIVE)
        if inplace is not None:

            def on_own(lists, *args):
                own = [x.clone() for x in lists]
                return inplace(own, *args), own

            differentiable = name not in WITHOUT_INPLACE_DERIVATIVE
            assert check_rule(on_own, [A, B], *args, nested=False, gradients=differentiable)


def test_others():
    def fill(xs, ys):
        made = [torch.empty(3), torch.empty(2, 3)]
        torch._foreach_copy_(made, xs)
        torch._foreach_zero_(own := [y.clone() for y in ys])
        return made, own

    assert check_rule(fill, [A, B], [A * 2, B * 3], gradients=False)


@pytest.mark.skipif(not hasattr(torch, "_foreach_mm"), reason="PyTorch before 2.13 has no _foreach_mm")
def test_products():
    def products(xs, ys):
        return torch._foreach_mm([xs[1], xs[1].mT], [ys[1].mT, ys[1]])

    assert check_rule(products, [A, B], [A * 2, B * 3], gradients=False)


def test_a_number_in_a_tensor():
    assert check_rule(lambda xs, y: torch._foreach_mul(xs, y), [A, B], torch.tensor(2.0), gradients=False)


def test_lists_of_other_lengths():
    with pytest.raises(RuntimeError, match="same number of tensors"):
        check_rule(lambda xs, ys: torch._foreach_add(xs, ys[:1]), [A, B], [A, B])


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "foreach" in func._schema.name:
            seen.append(func)
        return func(*args, **(kwargs or {}))


seen = []


@pytest.mark.parametrize("dims", [0, -1])
def test_one_call_where_the_elements_are_alike(dims):
    """Of the lists of physical tensors, so that a GPU's kernels on lists stay what they are for."""
    xs, ys = [torch.rand(2, 2, 2), torch.rand(2, 2)], [torch.rand(2, 2, 2), torch.rand(2, 2)]
    seen.clear()
    with Seen():
        got = vmap(lambda xs, ys: torch._foreach_add(xs, ys, alpha=2), in_dims=dims, out_dims=dims)(xs, ys)
        nested = vmap(vmap(lambda x: torch._foreach_mul([x, x], [2.0, 3.0])[1], in_dims=dims))(xs[0])
        vmap(lambda xs, ys: torch._foreach_mul_(xs, ys) and xs[0], in_dims=dims)(changed := [x.clone() for x in xs], ys)
    assert [op._overloadname for op in seen] == ["List", "ScalarList", "List"]
    torch.testing.assert_close(got, tuple(x + 2 * y for x, y in zip(xs, ys, strict=True)))
    torch.testing.assert_close(changed, [x * y for x, y in zip(xs, ys, strict=True)])
    torch.testing.assert_close(nested if dims == 0 else nested.mT, xs[0] * 3)


def test_one_call_for_each_element_where_they_are_not():
    """Other batch dims, other dtypes, a record for autograd."""
    x, y = torch.rand(2, 2), torch.rand(2, 2)
    seen.clear()
    with Seen():
        first = vmap(lambda x, y: torch._foreach_add([x], [y])[0], in_dims=(0, 1))(x, y)
        second = vmap(lambda x, y: torch._foreach_add([x], [y])[0])(x, y.double())
        third = vmap(lambda x: torch._foreach_exp([x])[0])(leaf := x.clone().requires_grad_())
    assert not seen
    torch.testing.assert_close((first, second), (x + y.mT, x + y.double()))
    torch.testing.assert_close(torch.autograd.grad(third.sum(), leaf)[0], x.exp())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_on_lists(optimizer):
    """PyTorch sorts its lists by device and dtype, in C++ that does not ask what the tensors are."""

    def train(p, g):
        q, r = p.clone().requires_grad_(), p.double().requires_grad_()
        steps = optimizer([q, r], lr=0.1, foreach=True)
        for _ in range(2):
            q.grad, r.grad = g.clone(), g.double()
            steps.step()
        return q.detach(), r.detach()

    p, g = torch.rand(3, 4), torch.rand(3, 4)
    rows = [train(*row) for row in zip(p, g, strict=True)]
    torch.testing.assert_close(vmap(train)(p, g), tuple(torch.stack(c) for c in zip(*rows, strict=True)))
