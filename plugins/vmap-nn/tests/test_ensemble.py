"""Ensembles against their members one by one."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vmap_autograd import grad
from vmap_core import UnsupportedError, fallback_policy, vmap
from vmap_nn import Ensemble


@pytest.fixture(autouse=True)
def no_loop():
    with fallback_policy("error"):
        yield


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def cnn():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def same(ensemble, members):
    """The state of each member, by name."""
    for i, member in enumerate(members):
        got = ensemble[i].state_dict()
        for name, value in member.state_dict().items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("in_dims", [None, 0, 1])
@pytest.mark.parametrize(("make", "shape"), [(mlp, (5, 4)), (cnn, (5, 2, 6, 6))])
def test_forward_and_statistics(make, shape, in_dims):
    members = [make() for _ in range(3)]
    ensemble = Ensemble(members, in_dims=in_dims)
    x = torch.randn(*shape) if in_dims is None else torch.randn(3, *shape).movedim(0, in_dims)
    inputs = [x] * 3 if in_dims is None else x.unbind(in_dims)
    expected = torch.stack([m(i) for m, i in zip(members, inputs, strict=True)])
    torch.testing.assert_close(ensemble(x), expected)
    same(ensemble, members)  # batch norm has counted, each member its own
    ensemble.eval()
    expected = torch.stack([m.eval()(i) for m, i in zip(members, inputs, strict=True)])
    torch.testing.assert_close(ensemble(x), expected)


class Recomputed(nn.Module):
    """Keeps no activations, if told so."""

    def __init__(self, again=True):
        super().__init__()
        self.inner, self.again = mlp(), again

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False) if self.again else self.inner(x)


@pytest.mark.parametrize("options", [{}, {"shared": ["inner.0"]}, {"chunk_size": 2}, {"in_dims": 0}, {"in_dims": 1}])
@pytest.mark.parametrize("count", [1, 3])
def test_members_that_recompute(options, count):
    members = [Recomputed() for _ in range(count)]
    x = torch.randn(5, 4) if "in_dims" not in options else torch.randn(count, 5, 4).movedim(0, options["in_dims"])
    results = []
    for again in (True, False):
        ensemble = Ensemble(members, **options)
        ensemble.module.again = again
        ensemble(x).square().sum().backward()
        inside = vmap(grad(lambda x, e=ensemble: e(x).square().sum()))(torch.stack([x, x * 2]))
        results.append((inside, [p.grad for p in ensemble.parameters()]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_that_of_each_member(optimizer):
    members = [cnn() for _ in range(3)]
    ensemble = Ensemble(members)
    x, y = torch.randn(6, 2, 6, 6), torch.randint(0, 3, (6,))
    together = optimizer(ensemble.parameters(), lr=0.01)
    apart = [optimizer(m.parameters(), lr=0.01) for m in members]
    for _ in range(3):
        together.zero_grad()
        vmap(nn.functional.cross_entropy, in_dims=(0, None))(ensemble(x), y).sum().backward()
        together.step()
        for member, o in zip(members, apart, strict=True):
            o.zero_grad()
            nn.functional.cross_entropy(member(x), y).backward()
            o.step()
    for i, member in enumerate(members):
        for got, expected in zip(ensemble[i].parameters(), member.parameters(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_it_is_a_module():
    ensemble = Ensemble([mlp() for _ in range(3)])
    assert len(ensemble) == 3
    assert len(list(ensemble)) == 3
    assert all(isinstance(p, nn.Parameter) and p.shape[0] == 3 for p in ensemble.parameters())
    other = Ensemble([mlp() for _ in range(3)])
    other.load_state_dict(ensemble.state_dict())
    x = torch.randn(5, 4)
    torch.testing.assert_close(other(x), ensemble(x))
    assert ensemble.double()(x.double()).dtype == torch.float64
    assert "members=3" in repr(ensemble)
    assert not copy.deepcopy(ensemble).eval().module.training
    with pytest.raises(IndexError):
        ensemble[3]


def test_members_are_copies():
    members = [mlp() for _ in range(2)]
    ensemble = Ensemble(members)
    with torch.no_grad():
        ensemble.module[0].weight.zero_()
        ensemble[0][0].weight.fill_(1.0)
    assert members[0][0].weight.abs().sum() > 0
    assert ensemble.module[0].weight.abs().sum() == 0


@pytest.mark.parametrize("shared", [("0",), ("0.weight", "0.bias"), "0"])
def test_shared_parameters(shared):
    members = [mlp() for _ in range(3)]
    for member in members[1:]:
        member[0].load_state_dict(members[0][0].state_dict())
    ensemble = Ensemble(members, shared=shared)
    assert ensemble.module[0].weight.shape == (8, 4)
    assert ensemble.module[2].weight.shape == (3, 3, 8)
    x = torch.randn(5, 4)
    torch.testing.assert_close(ensemble(x), torch.stack([m(x) for m in members]))
    ensemble(x).sum().backward()
    sum(m(x).sum() for m in members).backward()
    expected = sum(m[0].weight.grad for m in members)
    torch.testing.assert_close(ensemble.module[0].weight.grad, expected)
    torch.testing.assert_close(ensemble[1](x), members[1](x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


@pytest.mark.parametrize("shared", [(), ("embed.weight",)])
def test_tied_parameters_stay_tied(shared):
    members = [Tied() for _ in range(3)]
    ensemble = Ensemble(members, shared=shared)
    assert ensemble.module.head.weight is ensemble.module.embed.weight
    assert len(list(ensemble.parameters())) == 1
    x = torch.randint(0, 5, (2, 3))
    first = members[0]
    torch.testing.assert_close(ensemble(x), torch.stack([(first if shared else m)(x) for m in members]))
    member = ensemble[1]
    assert member.head.weight is member.embed.weight


def test_dropout_differs_between_members():
    member = nn.Dropout(0.5)
    x = torch.ones(100)
    different = Ensemble([member] * 2, in_dims=None)(x)
    assert not torch.equal(different[0], different[1])
    same_ = Ensemble([member] * 2, randomness="same")(x)
    assert torch.equal(same_[0], same_[1])


def test_build_initialises_all_at_once():
    made = []

    def make():
        made.append(1)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LSTM(8, 3, 2))

    torch.manual_seed(0)
    ensemble = Ensemble.build(make, 6)
    assert len(made) == 2  # mapped once, and once for the structure
    weight = ensemble.module[0].weight
    assert weight.is_leaf
    assert weight.requires_grad
    assert weight.shape == (6, 8, 4)
    assert weight.flatten(1).unique(dim=0).shape[0] == 6
    assert weight.abs().max() <= 0.5  # 1 / sqrt(4): what Linear draws between
    assert all(t.is_contiguous() for t in ensemble.state_dict().values())
    x = torch.randn(5, 8)
    alone = torch.stack([m[2](m[1](m[0](x[:, :4])))[0] for m in ensemble])
    torch.testing.assert_close(ensemble(x[:, :4])[0], alone)


def test_mapped_once_more():
    members = [mlp() for _ in range(3)]
    ensemble = Ensemble(members)
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(vmap(ensemble)(x), torch.stack([torch.stack([m(r) for m in members]) for r in x]))


def test_chunks_and_keywords():
    members = [nn.MultiheadAttention(4, 2) for _ in range(5)]
    x = torch.randn(3, 4)
    whole = Ensemble(members)(x, x, x, need_weights=False)[0]
    parts = Ensemble(members, chunk_size=2)(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(whole, torch.stack([m(x, x, x, need_weights=False)[0] for m in members]))


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
    with pytest.raises(ValueError, match=r"weight of module 1 is \(3, 4\)"):
        Ensemble([nn.Linear(4, 2), nn.Linear(4, 3)])
    with pytest.raises(ValueError, match="not built like"):
        Ensemble([nn.Linear(4, 2), nn.Linear(4, 2, bias=False)])
    with pytest.raises(ValueError, match="mode"):
        Ensemble([nn.Linear(4, 2), nn.Linear(4, 2).eval()])
    with pytest.raises(ValueError, match="head"):
        Ensemble([nn.Linear(4, 2)], shared=["head"])


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + x
        return self.seen


def test_a_buffer_that_is_assigned_is_refused():
    ensemble = Ensemble([Counter(), Counter()])
    with pytest.raises(UnsupportedError, match="seen"):
        ensemble(torch.ones(()))
    assert ensemble.module.seen.tolist() == [0.0, 0.0]
