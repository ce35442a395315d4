"""Fused optimizers: one step of all samples, of the kernels and of whole optimizers, and of lists."""

import pytest
import torch
from cuda_checks import Seen
from torch._subclasses.fake_tensor import FakeTensorMode

from vmap_core import FallbackWarning, InplaceError, vmap

aten = torch.ops.aten


SHAPES = [(2, 3), (4,), ()]
ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01, "eps": 1e-8, "amsgrad": False, "maximize": False}
OPTIMIZERS = {
    "_fused_adam_": (3, True, ADAM),
    "_fused_adamw_": (4, True, {**ADAM, "amsgrad": True}),
    "_fused_sgd_": (
        2,
        False,
        {"weight_decay": 0.01, "momentum": 0.9, "lr": 0.1, "dampening": 0.1, "nesterov": False, "maximize": False,
         "is_first_step": False},
    ),
    "_fused_adagrad_": (2, True, {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.01, "eps": 1e-8, "maximize": False}),
}  # fmt: skip


def optimizer(name, *, own_steps=False, options=None, batch_dim=0):
    """Return the lists of a mapped step, and those of the loop, after it."""
    count, steps, fixed = OPTIMIZERS[name]
    torch.manual_seed(0)
    lists = [[torch.rand(3, *s).movedim(0, batch_dim if s else 0) for s in SHAPES] for _ in range(2 + count - 1)]
    if name == "_fused_adam_":
        lists.append([])
    if steps:
        lists.append(
            [
                torch.tensor([2.0, 3.0, 5.0]) if own_steps or name == "_fused_adagrad_" else torch.tensor(2.0)
                for _ in SHAPES
            ]
        )
    op = getattr(aten, name).default
    dims = [[batch_dim if s else 0 for s in SHAPES] if values else [] for values in lists]
    if steps:
        dims[-1] = [0 if x.ndim else None for x in lists[-1]]
    samples = []
    for i in range(3):
        own = lambda x, d: x if d is None else x.select(d, i).clone(memory_format=torch.contiguous_format)  # noqa: E731, B023
        row = [[own(x, d) for x, d in zip(v, ds, strict=True)] for v, ds in zip(lists, dims, strict=True)]
        op(*row, **fixed, **(options or {}))
        samples.append(row)
    expected = [
        [
            torch.stack([s[i][k] for s in samples], d) if d is not None else x
            for k, (x, d) in enumerate(zip(v, ds, strict=True))
        ]
        for i, (v, ds) in enumerate(zip(lists, dims, strict=True))
    ]

    def step(*lists):
        op(*lists, **fixed, **(options or {}))
        return torch.zeros(())

    with Seen() as seen:
        vmap(step, in_dims=tuple(dims))(*lists)
    assert seen.ops.count(op) == 1
    return lists, expected


@pytest.mark.parametrize("own_steps", [False, True])
@pytest.mark.parametrize("batch_dim", [0, 1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_of_all_samples(name, own_steps, batch_dim):
    got, expected = optimizer(name, own_steps=own_steps, batch_dim=batch_dim)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("sizes", [(3, 2), (1, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("outer", [0, 1, 2])
def test_one_step_at_two_levels(sizes, outer):
    lists = [torch.rand(*sizes, 4).movedim(0, outer) for _ in range(3)]
    fixed = OPTIMIZERS["_fused_sgd_"][2]

    def step(p, g, m):
        aten._fused_sgd_.default([p], [g], [m], **fixed)
        return p * 1

    expected = [x.movedim(outer, 0).reshape(-1, 4).clone() for x in lists]
    for row in zip(*expected, strict=True):
        step(*row)
    vmap(vmap(step), in_dims=outer)(*lists)
    torch.testing.assert_close([x.movedim(outer, 0).reshape(-1, 4) for x in lists], expected)


def test_a_learning_rate_of_each_sample():
    p, g, m = torch.rand(3, 4), torch.rand(3, 4), torch.rand(3, 4)
    lr, expected = torch.tensor([0.1, 0.2, 0.3]), (p.clone(), m.clone())
    fixed = {k: v for k, v in OPTIMIZERS["_fused_sgd_"][2].items() if k != "lr"}

    def step(p, g, m, lr):
        aten._fused_sgd_.tensor_lr([p], [g], [m], lr=lr, **fixed)
        return lr

    with pytest.warns(FallbackWarning, match="_fused_sgd_"):
        vmap(step)(p, g, m, lr)
    for i in range(3):
        step(expected[0][i], g[i], expected[1][i], lr[i])
    torch.testing.assert_close((p, m), expected)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_whole_optimizers(optimizer, options):
    def train(p, g):
        q = p.clone().requires_grad_()
        steps = optimizer([q], lr=0.1, **options)
        for _ in range(2):
            q.grad = g.clone()
            steps.step()
        return q.detach()

    p, g = torch.rand(3, 4), torch.rand(3, 4)
    torch.testing.assert_close(vmap(train)(p, g), torch.stack([train(*row) for row in zip(p, g, strict=True)]))


def test_parameters_that_samples_share_are_not_written():
    p = torch.rand(4)
    with pytest.raises(InplaceError, match="outside"):
        vmap(lambda g: aten._fused_sgd_.default([p], [g], [g * 0], **OPTIMIZERS["_fused_sgd_"][2]))(torch.rand(3, 4))


def test_foreach():
    """By the core's rules, on every device: one call on the lists of physical tensors."""
    with FakeTensorMode(), Seen() as seen:
        xs = [torch.empty(2, 3, 5, device="cuda"), torch.empty(4, 3, device="cuda")]
        out = vmap(lambda *xs: torch._foreach_add(torch._foreach_mul(xs, 2.0), xs, alpha=2), in_dims=1)(*xs)
    assert seen.ops.count(aten._foreach_add.List) == seen.ops.count(aten._foreach_mul.Scalar) == 1
    assert [(o.shape, o.device.type) for o in out] == [((3, 2, 5), "cuda"), ((3, 4), "cuda")]
