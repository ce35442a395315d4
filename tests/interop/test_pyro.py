"""pyro: densities of its distributions and models, mapped over parameters and over data."""

import pytest
import torch

from vmap_core import vmap
from vmap_core.testing import check_rule

pyro = pytest.importorskip("pyro", reason="pyro-ppl is not installed")

from pyro import distributions as D  # noqa: E402
from pyro import poutine  # noqa: E402

from vmap_autograd import grad  # noqa: E402

SIZES = (3, 1)
MEAN = torch.randn(4, generator=torch.Generator().manual_seed(0))
SCALE = torch.tensor([0.5, 1.0, 0.7, 1.4])
COUNTS = torch.tensor([0.0, 1.0, 2.0, 3.0])


def hidden_markov(initial, transition, observed):
    unit = D.Normal(torch.zeros(2), 1.0).to_event(1)
    start = D.Normal(initial, 1.0).to_event(1)
    return D.GaussianHMM(start, transition, unit, torch.eye(2), unit).log_prob(observed)


DENSITIES = {
    "Normal": (lambda m, s: D.Normal(m, s).to_event(1).log_prob(m + 1), MEAN, SCALE),
    "masked": (lambda m, s: D.Normal(m, s).mask(m > 0).log_prob(m + 1), MEAN, SCALE),
    "Delta": (lambda m: D.Delta(m).log_prob(m), MEAN),
    "MultivariateNormal": (
        lambda m, s: D.MultivariateNormal(m, scale_tril=torch.diag(s)).log_prob(m + 1),
        MEAN, SCALE,
    ),
    "MultivariateStudentT": (
        lambda m, s: D.MultivariateStudentT(torch.tensor(5.0), m, torch.diag(s)).log_prob(m + 1),
        MEAN, SCALE,
    ),
    "GaussianHMM": (hidden_markov, MEAN[:2], torch.eye(2) * 0.5, torch.randn(5, 2)),
    "DiscreteHMM": (
        lambda i, t, x: D.DiscreteHMM(i, t, D.Normal(torch.zeros(2), 1.0)).log_prob(x),
        MEAN[:2], torch.randn(2, 2), torch.randn(5),
    ),
    "ZeroInflatedPoisson": (lambda r, g: D.ZeroInflatedPoisson(r, gate=g).log_prob(COUNTS), SCALE, SCALE / 2),
    "BetaBinomial": (lambda a, b: D.BetaBinomial(a, b, 5.0).log_prob(COUNTS), SCALE, SCALE + 1),
    "DirichletMultinomial": (lambda a: D.DirichletMultinomial(a, total_count=6).log_prob(COUNTS), SCALE),
    "AsymmetricLaplace": (lambda a: D.AsymmetricLaplace(a, a, a).log_prob(a + 1), SCALE),
    "LKJCholesky": (lambda c: D.LKJCholesky(3, c).log_prob(torch.eye(3)), torch.tensor(1.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSITIES)
def test_densities(name):
    function, *sample = DENSITIES[name]
    assert check_rule(function, *sample, batch_sizes=SIZES, nested=len(sample) < 2)


DATA = torch.randn(10, generator=torch.Generator().manual_seed(1))


def model(data):
    mean = pyro.sample("mean", D.Normal(0.0, 1.0))
    scale = pyro.sample("scale", D.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("observed", D.Normal(mean, scale), obs=data)


def log_joint(mean, scale, data=DATA):
    trace = poutine.trace(poutine.condition(model, {"mean": mean, "scale": scale})).get_trace(data)
    return trace.log_prob_sum()


MEANS, SCALES = torch.tensor([0.1, 0.2, -0.3]), torch.tensor([0.5, 0.6, 0.7])


def test_the_density_of_a_model():
    got = vmap(log_joint)(MEANS, SCALES)
    torch.testing.assert_close(got, torch.stack([log_joint(*p) for p in zip(MEANS, SCALES, strict=True)]))
    datas = torch.stack([DATA, DATA * 2, DATA + 1])
    got = vmap(log_joint, in_dims=(None, None, 0))(MEANS[0], SCALES[0], datas)
    torch.testing.assert_close(got, torch.stack([log_joint(MEANS[0], SCALES[0], d) for d in datas]))
    grid = vmap(vmap(log_joint, in_dims=(None, 0)), in_dims=(0, None))(MEANS, SCALES)
    torch.testing.assert_close(grid, torch.stack([torch.stack([log_joint(m, s) for s in SCALES]) for m in MEANS]))


def test_scores_of_each_sample():
    got = vmap(grad(log_joint, argnums=(0, 1)))(MEANS, SCALES)
    for i in range(3):
        leaves = [MEANS[i].clone().requires_grad_(), SCALES[i].clone().requires_grad_()]
        torch.testing.assert_close([g[i] for g in got], list(torch.autograd.grad(log_joint(*leaves), leaves)))


def test_the_potential_of_many_chains():
    from pyro.infer.mcmc.util import initialize_model

    pyro.set_rng_seed(0)
    start, potential, *_ = initialize_model(model, (DATA,))
    chains = {name: torch.stack([v, v + 0.1, v - 0.1]) for name, v in start.items()}
    expected = torch.stack([potential({name: v[i] for name, v in chains.items()}) for i in range(3)])
    torch.testing.assert_close(vmap(potential)(chains), expected)
