"""Backward hooks inside mapped functions see one sample, whenever the backward pass runs."""

import pytest
import torch

from vmap_core import UnsupportedError, vmap

X = torch.arange(1.0, 13).reshape(3, 4)


def outer_grads(f, mapped, in_dim=0):
    x = X.clone().movedim(0, in_dim).detach().requires_grad_()
    out = vmap(f, in_dims=in_dim)(x) if mapped else torch.stack([f(row) for row in x.unbind(in_dim)])
    out.pow(2).sum().backward()
    return x.grad


HOOKS = {
    "scale": lambda g: g * 3,
    "look": lambda g: None,
    "clip the sample's norm": lambda g: g / g.norm().clamp(min=1.0),
    "a reduction": lambda g: g.sum().expand(4),
    "a constant": lambda g: torch.ones(4),
    "another vmap": lambda g: vmap(lambda v: v * 2)(g),
}


@pytest.mark.parametrize("in_dim", [0, 1])
@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_hook_after_the_function_has_returned(hook, in_dim):
    def f(x):
        y = x * 2
        y.register_hook(hook)
        return y.sin()

    torch.testing.assert_close(outer_grads(f, True, in_dim), outer_grads(f, False, in_dim))


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_hook_of_a_nested_level(hook):
    def f(a):
        y = a * 2
        y.register_hook(hook)
        return y.sin()

    x, z = X.expand(2, 3, 4).clone().requires_grad_(), X.expand(2, 3, 4).clone().requires_grad_()
    vmap(vmap(f))(x).pow(2).sum().backward()
    torch.stack([torch.stack([f(row) for row in m]) for m in z]).pow(2).sum().backward()
    torch.testing.assert_close(x.grad, z.grad)


def test_removed_hooks_do_not_run():
    def f(x):
        y = x * 2
        y.register_hook(lambda g: g * 100).remove()
        return y

    torch.testing.assert_close(outer_grads(f, True), outer_grads(f, False))


def test_hooks_run_inside_too():
    pytest.importorskip("vmap_autograd")

    def f(x):
        w = x.detach().requires_grad_()
        y = w * 2
        y.register_hook(lambda g: g * x.sum())  # the level is active: its tensors may be used
        return torch.autograd.grad(y.sum(), w)[0]

    torch.testing.assert_close(vmap(f)(X), torch.stack([f(row) for row in X]))


def test_a_hook_that_uses_a_tensor_of_the_mapped_function_afterwards():
    x = X.clone().requires_grad_()

    def f(x):
        y = x * 2
        y.register_hook(lambda g: g * x)
        return y

    vmap(f)(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_a_hook_that_raises_leaves_nothing_behind():
    x = X.clone().requires_grad_()

    def stop(g):
        raise KeyError("stop")

    out = vmap(lambda x: ((y := x * 2).register_hook(stop), y)[1])(x)
    with pytest.raises(KeyError, match="stop"):
        out.sum().backward()


def test_vmap_in_a_hook_of_an_ordinary_tensor():
    x = X.clone().requires_grad_()
    y = x * 2
    y.register_hook(lambda g: vmap(lambda r: vmap(lambda s: s * 3)(r))(g))
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((3, 4), 6.0))


def test_a_tensor_that_all_samples_share_is_refused():
    w = torch.ones(4, requires_grad=True)

    def f(x):
        v = w * 2
        v.register_hook(lambda g: g)
        return v * x

    with pytest.raises(UnsupportedError, match="does not depend on the sample"):
        vmap(f)(X)
    with pytest.raises(UnsupportedError, match="register_hook"):
        vmap(lambda x: x.register_post_accumulate_grad_hook(print))(X.clone().requires_grad_())


def test_an_ordinary_tensor_keeps_its_hooks():
    w = torch.ones(4, requires_grad=True)

    def f(x):
        w.register_hook(lambda g: g * 2)
        return w * x

    vmap(f)(X).sum().backward()
    assert torch.equal(w.grad, X.sum(0) * 2)


def test_a_tensor_without_grad_has_pytorchs_error():
    with pytest.raises(RuntimeError, match="cannot register a hook on a tensor that doesn't require gradient"):
        vmap(lambda x: x.register_hook(print))(X)
