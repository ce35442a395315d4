"""What runs with the backward pass: hooks, checkpoints, saved-tensor hooks; and the switches of grad mode."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from vmap_core import UnsupportedError, vmap

torch.manual_seed(0)
X = torch.randn(4, 3)
W = torch.randn(3)


def gradients(out, *inputs):
    return torch.autograd.grad(out, inputs, torch.ones_like(out), retain_graph=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_with_the_backward_pass_outside(reentrant):
    def f(x):
        k = x.detach() * 2
        return checkpoint(lambda a: (a.sin() * k).exp() * w, x, use_reentrant=reentrant).sum()

    results = []
    for run in (vmap(f), lambda x: torch.stack([f(row) for row in x])):
        x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
        out = run(x)
        out.sum().backward()
        results.append((out, x.grad, w.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_with_the_backward_pass_inside(reentrant):
    def f(x):
        x = x.detach().requires_grad_()
        y = checkpoint(lambda a: (a.sin() * W).exp(), x, use_reentrant=reentrant).sum()
        y.backward()
        return x.grad

    torch.testing.assert_close(vmap(f)(X), torch.stack([f(x) for x in X]))


def test_checkpoint_recomputes_once_a_batch_and_draws_the_same_numbers():
    calls = []

    def body(x):
        calls.append(1)
        return x * torch.rand(3)

    x = X.clone().requires_grad_()
    out = vmap(lambda x: checkpoint(body, x, use_reentrant=False), randomness="different")(x)
    (g,) = gradients(out, x)
    assert len(calls) == 2
    torch.testing.assert_close(g * X, out.detach())


def test_checkpoint_sequential_and_nested_levels():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh())

    def f(x):
        return vmap(lambda s: checkpoint_sequential(model, 2, x * s, use_reentrant=False))(torch.arange(1.0, 3.0)).sum()

    results = []
    for run in (vmap(f), lambda x: torch.stack([f(row) for row in x])):
        x = X.clone().requires_grad_()
        model.zero_grad()
        run(x).sum().backward()
        results.append((x.grad, [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(*results)


def test_full_backward_hooks_see_a_sample():
    seen = []
    model = nn.Linear(3, 2)

    def hook(module, into, out):
        seen.append((tuple(into[0].shape), tuple(out[0].shape)))
        return (into[0] * 2,)

    def prehook(module, out):
        return (out[0].clamp(max=0.5),)

    model.register_full_backward_hook(hook)
    model.register_full_backward_pre_hook(prehook)
    x = X.clone().requires_grad_()
    ours = gradients(vmap(lambda x: model(x).sin())(x), x)
    assert seen == [((3,), (2,))]
    torch.testing.assert_close(ours, gradients(torch.stack([model(row).sin() for row in x]), x))
    seen.clear()
    rows = torch.randn(2, 4, 3, requires_grad=True)
    ours = gradients(vmap(vmap(lambda x: model(x).sin()))(rows), rows)
    assert seen == [((3,), (2,))]
    torch.testing.assert_close(
        ours, gradients(torch.stack([torch.stack([model(r).sin() for r in m]) for m in rows]), rows)
    )


def test_tensor_hooks_inside_a_backward_pass_inside():
    def f(x):
        w = W.detach().requires_grad_()
        y = w * x
        y.register_hook(lambda g: g.clamp(max=x.sum()))
        return torch.autograd.grad((y * y).sum(), w)[0]

    torch.testing.assert_close(vmap(f)(X), torch.stack([f(x) for x in X]))


def test_saved_tensor_hooks():
    packed = []

    def pack(t):
        packed.append(tuple(t.shape))
        return t.clone()

    def f(x):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            w = W.detach().requires_grad_()
            y = (w * x).exp()
        return torch.autograd.grad(y.sum(), w)[0]

    torch.testing.assert_close(vmap(f)(X), torch.stack([f(x) for x in X]))
    assert (4, 3) in packed  # they see the physical tensors
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(vmap(f)(X), torch.stack([f(x) for x in X]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_inside(mode):
    def f(x):
        with mode():
            k = x * 2
            assert not torch.is_grad_enabled() and not k.requires_grad
        k = k.clone() if mode is torch.inference_mode else k
        return (x * k).sum()

    x = X.clone().requires_grad_()
    out = vmap(f)(x)
    torch.testing.assert_close(gradients(out, x)[0], 2 * X)


def test_modes_outside_and_set_grad_enabled():
    def f(x):
        with torch.enable_grad():
            w = W.detach().requires_grad_()
            return torch.autograd.grad((w * x).sin().sum(), w)[0]

    expected = torch.stack([f(x) for x in X])
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(vmap(f)(X), expected)

    def switched(x):
        torch.set_grad_enabled(False)
        y = x * 2
        torch.set_grad_enabled(True)
        return y + x

    x = X.clone().requires_grad_()
    torch.testing.assert_close(gradients(vmap(switched)(x), x)[0], torch.ones(4, 3))
    with torch.inference_mode():
        assert vmap(lambda x: x * 2)(X).is_inference()


def test_hooks_of_nodes_that_know_no_samples_are_an_error():
    x = X.clone().requires_grad_()
    for name in ("register_hook", "register_prehook"):
        with pytest.raises(UnsupportedError, match="node MulBackward0.*register_hook of the tensor"):
            vmap(lambda x, name=name: getattr((x * x).grad_fn, name)(print))(x)


def test_anomaly_mode_and_graph_metadata():
    def f(x):
        w = W.detach().requires_grad_()
        y = w * x
        assert y.requires_grad and not y.is_leaf and w.is_leaf and "Mul" in y.grad_fn.name()
        return torch.autograd.grad(y.sum(), w)[0]

    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        torch.testing.assert_close(vmap(f)(X), X)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_each_element_of_an_expanded_leaf_has_its_own_gradient(dim):
    def f(x, mask):
        leaf = x.T.expand(5, 3, 2).detach().requires_grad_()
        out = leaf.masked_fill(mask, 1.0) * torch.arange(30.0).reshape(5, 3, 2)
        return torch.autograd.grad(out.sum(), leaf)[0]

    x, mask = torch.randn(4, 2, 3), torch.zeros(4, 3, 2, dtype=torch.bool)
    mask[0, 1] = True
    expected = torch.stack([f(*sample) for sample in zip(x, mask, strict=True)])
    assert torch.equal(vmap(f, in_dims=dim)(x.movedim(0, dim), mask.movedim(0, dim)), expected)


def test_a_leaf_of_each_inner_sample_in_a_batch_that_lies_across_the_outer_one():
    def f(x, y):
        leaf = x.detach().requires_grad_()
        return (
            torch.autograd.grad((leaf.masked_fill(torch.zeros(3, dtype=torch.bool), 1.0) ** 2).sum(), leaf)[0] + 0 * y
        )

    x, y = torch.randn(2, 3, 1).transpose(0, 1), torch.zeros(2)
    mapped = vmap(vmap(vmap(f, in_dims=(None, 0)), in_dims=(0, None)), in_dims=(0, None))
    torch.testing.assert_close(mapped(x, y), (6 * x)[:, :, None].expand(3, 2, 2, 1))


def test_a_view_of_a_leaf_keeps_its_graph_when_what_the_leaf_was_detached_from_is_written_to():
    def f(x):
        leaf = x.detach().requires_grad_()
        first = leaf[0]
        x.mul_(2)
        return torch.autograd.grad(first**2, leaf)[0]

    x = torch.randn(3, 2)
    expected = torch.stack([f(row) for row in x.clone()])
    assert torch.equal(vmap(f)(x.clone()), expected)
