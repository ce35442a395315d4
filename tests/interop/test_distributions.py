"""torch.distributions: every distribution, its densities, moments and draws, transforms and divergences, mapped."""

import pytest
import torch
import torch.distributions as D
from torch.distributions import constraints, transforms
from torch.distributions.kl import _KL_REGISTRY, kl_divergence

from vmap_core import DataDependentError, fallback_policy, vmap
from vmap_core.testing import check_rule

torch.manual_seed(0)


@pytest.fixture(autouse=True)
def arguments_are_checked():
    """PyTorch's default; the first `torch.compile` of a process (of another test) switches it off for good."""
    before = D.Distribution._validate_args
    D.Distribution.set_default_validate_args(True)
    yield
    D.Distribution.set_default_validate_args(before)


def real(*shape):
    return torch.randn(shape)


def unit(*shape):
    return torch.rand(shape) * 0.8 + 0.1


SPD = torch.eye(3) * 2 + 0.3
TRIL = torch.linalg.cholesky(SPD)

# Some checks of arguments read values sample by sample (`valid.all()`): those go without.
FREE = {"validate_args": False}

# name: (distribution made of parameters, parameters of one sample)
CASES = {
    "Bernoulli": (D.Bernoulli, (unit(3),)),
    "Bernoulli of logits": (lambda x: D.Bernoulli(logits=x), (real(3),)),
    "Beta": (D.Beta, (unit(3), unit(3))),
    "Binomial": (lambda p: D.Binomial(5, p), (unit(3),)),
    "Binomial of counts": (lambda p: D.Binomial(torch.tensor([3.0, 4.0, 5.0]), p), (unit(3),)),
    "Categorical": (D.Categorical, (unit(2, 4),)),
    "Categorical of logits": (lambda x: D.Categorical(logits=x), (real(2, 4),)),
    "Cauchy": (D.Cauchy, (real(3), unit(3))),
    "Chi2": (D.Chi2, (unit(3),)),
    "ContinuousBernoulli": (D.ContinuousBernoulli, (unit(3),)),
    "Dirichlet": (D.Dirichlet, (unit(2, 3),)),
    "Exponential": (D.Exponential, (unit(3),)),
    "FisherSnedecor": (D.FisherSnedecor, (unit(3) + 3, unit(3) + 5)),
    "Gamma": (D.Gamma, (unit(3), unit(3))),
    "GeneralizedPareto": (lambda a, b, c: D.GeneralizedPareto(a, b, c, **FREE), (real(3), unit(3), unit(3) * 0.1)),
    "Geometric": (lambda p: D.Geometric(p, **FREE), (unit(3),)),
    "Gumbel": (lambda a, b: D.Gumbel(a, b, **FREE), (real(3), unit(3))),
    "HalfCauchy": (D.HalfCauchy, (unit(3),)),
    "HalfNormal": (D.HalfNormal, (unit(3),)),
    "Independent": (lambda a, b: D.Independent(D.Normal(a, b), 1), (real(2, 3), unit(2, 3))),
    "InverseGamma": (D.InverseGamma, (unit(3) + 2.5, unit(3))),
    "Kumaraswamy": (D.Kumaraswamy, (unit(3), unit(3))),
    "LKJCholesky": (lambda c: D.LKJCholesky(3, c), (unit(2),)),
    "Laplace": (D.Laplace, (real(3), unit(3))),
    "LogNormal": (D.LogNormal, (real(3), unit(3))),
    "LogisticNormal": (D.LogisticNormal, (real(3), unit(3))),
    "LowRankMultivariateNormal": (D.LowRankMultivariateNormal, (real(3), real(3, 2), unit(3))),
    "MixtureSameFamily": (
        lambda x, a, b: D.MixtureSameFamily(D.Categorical(logits=x), D.Normal(a, b)),
        (real(4), real(4), unit(4)),
    ),
    "Multinomial": (lambda p: D.Multinomial(5, p), (unit(2, 3),)),
    "MultivariateNormal": (lambda m, x: D.MultivariateNormal(m, scale_tril=x), (real(3), TRIL)),
    "MultivariateNormal of covariances": (lambda m, x: D.MultivariateNormal(m, x, **FREE), (real(3), SPD)),
    "MultivariateNormal of precisions": (lambda m, x: D.MultivariateNormal(m, None, x, **FREE), (real(3), SPD)),
    "NegativeBinomial": (lambda p: D.NegativeBinomial(5, p), (unit(3),)),
    "Normal": (D.Normal, (real(3), unit(3))),
    "OneHotCategorical": (D.OneHotCategorical, (unit(2, 4),)),
    "OneHotCategoricalStraightThrough": (D.OneHotCategoricalStraightThrough, (unit(2, 4),)),
    "Pareto": (lambda a, b: D.Pareto(a, b, **FREE), (unit(3), unit(3) + 2.1)),
    "Poisson": (D.Poisson, (unit(3),)),
    "RelaxedBernoulli": (D.RelaxedBernoulli, (unit(1), unit(3))),
    "RelaxedOneHotCategorical": (D.RelaxedOneHotCategorical, (unit(1, 1), unit(2, 3))),
    "StudentT": (D.StudentT, (unit(3) + 3, real(3), unit(3))),
    "TransformedDistribution": (
        lambda a, b: D.TransformedDistribution(D.Normal(a, b), [D.ExpTransform(), D.AffineTransform(1.0, 2.0)], **FREE),
        (real(3), unit(3)),
    ),
    "Uniform": (lambda a, b: D.Uniform(a, a + b, **FREE), (real(3), unit(3))),
    "VonMises": (D.VonMises, (real(3), unit(3))),
    "Weibull": (D.Weibull, (unit(3), unit(3) + 1)),
    "Wishart": (lambda x: D.Wishart(4.5, scale_tril=x, **FREE), (TRIL,)),
    "Wishart of covariances": (lambda x: D.Wishart(4.5, x, **FREE), (SPD,)),
    "Wishart of precisions": (lambda x: D.Wishart(4.5, None, x, **FREE), (SPD,)),
}

# Whose parameters, or draws, PyTorch looks at, to go one way for all of them. Where samples differ, that is an error.
READS = {("Kumaraswamy", "kl"), ("Weibull", "kl")}  # ask whether the transforms of both are equal
REJECT = {"VonMises", "Wishart", "Wishart of covariances", "Wishart of precisions"}  # try until all are accepted

METHODS = {
    "log_prob": lambda d, x: d.log_prob(x),
    "cdf": lambda d, x: d.cdf(x),
    "icdf": lambda d, x: d.icdf(x.float().sigmoid()),
    "support": lambda d, x: d.support.check(x),
    "mean": lambda d, x: d.mean,
    "variance": lambda d, x: d.variance,
    "stddev": lambda d, x: d.stddev,
    "mode": lambda d, x: d.mode,
    "entropy": lambda d, x: d.entropy(),
    "enumerate_support": lambda d, x: d.enumerate_support(),
    "expand": lambda d, x: d.expand((2, *d.batch_shape)).log_prob(x),
}


def test_every_distribution_is_here():
    names = {n for n in D.__all__ if isinstance(getattr(D, n), type) and issubclass(getattr(D, n), D.Distribution)}
    assert names - {"Distribution", "ExponentialFamily"} == {name.partition(" ")[0] for name in CASES}


@pytest.mark.filterwarnings("ignore:Singular sample detected")  # as it is when a Wishart draws
@pytest.mark.parametrize("name", CASES)
def test_densities_and_moments(name):
    make, params = CASES[name]
    value = make(*params).sample()
    count = 0
    for what, method in METHODS.items():

        def function(x, *params, method=method):
            return method(make(*params), x)

        try:
            function(value, *params)
        except NotImplementedError:
            continue  # the distribution has none
        igamma = (what == "cdf" and "amma" in name) or name == "Chi2"  # has no derivative in PyTorch
        dense = what == "log_prob"  # the others need no second look at levels and sizes
        sizes = (3, 1, 0) if dense else (3,)
        count += check_rule(function, value, *params, gradients=not igamma, nested=dense, batch_sizes=sizes)
    assert count


def rows(params):
    return [torch.stack([p, p * 0.9, p * 0.8]) for p in params]


@pytest.mark.filterwarnings("ignore:Singular sample detected")  # PyTorch's own, when a Wishart draws
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("randomness", ["different", "same"])
def test_draws(name, randomness):
    make, params = CASES[name]
    batch = rows(params)

    def draw(*params):
        d = make(*params)
        return d.rsample() if d.has_rsample else d.sample()

    with pytest.raises(RuntimeError, match="randomness"):
        vmap(draw)(*batch)
    torch.manual_seed(3)
    # one draw for parameters that differ: the kernels of gamma, poisson, multinomial and the like run once a sample
    with fallback_policy("silent" if randomness == "same" else "error"):
        try:
            got = vmap(draw, randomness=randomness)(*batch)
        except DataDependentError:  # some samples were accepted before others
            assert name in REJECT
            return
    if randomness == "different" and name in REJECT:
        assert got.shape == draw(*batch).shape and not torch.equal(got[0], got[1])
        return
    if randomness == "different":
        torch.manual_seed(3)
        expected = draw(*batch)
    else:
        expected = []
        for sample in zip(*batch, strict=True):
            torch.manual_seed(3)
            expected.append(draw(*sample))
        expected = torch.stack(expected)
    torch.testing.assert_close(got, expected)


KL = [
    (one, other)
    for one in CASES
    for other in CASES
    if " " not in one + other
    if any(
        issubclass(getattr(D, one), p) and issubclass(getattr(D, other), q) and (one == other or p.__name__ == one)
        for p, q in _KL_REGISTRY
    )
]


@pytest.mark.parametrize(("one", "other"), KL)
def test_kl(one, other):
    (make_p, p), (make_q, q) = CASES[one], CASES[other]

    def divergence(p, q):
        return kl_divergence(make_p(*p), make_q(*q))

    try:
        divergence(p, q)
    except NotImplementedError:
        pytest.skip("PyTorch has no formula for these two, or not for these parameters")
    if (one, "kl") in READS:
        equal = vmap(divergence)(rows(p), rows(q))
        torch.testing.assert_close(equal, torch.stack([divergence(*r) for r in zip(zip(*rows(p)), zip(*rows(q)))]))  # noqa: B905
        with pytest.raises(DataDependentError):
            vmap(divergence)(rows(p), [x.flip(0) for x in rows(q)])
        return
    assert check_rule(divergence, p, q, nested=False)


TRANSFORMS = {
    "abs": (lambda: transforms.AbsTransform(), ()),
    "affine": (transforms.AffineTransform, (real(3), unit(3))),
    "affine of events": (lambda a, b: transforms.AffineTransform(a, b, event_dim=1), (real(3), unit(3))),
    "cat": (lambda a: transforms.CatTransform([transforms.AffineTransform(0.0, a), transforms.ExpTransform()], lengths=[1, 2]), (unit(),)),
    "compose": (lambda a, b: transforms.ComposeTransform([transforms.AffineTransform(a, b), transforms.SigmoidTransform()]), (real(3), unit(3))),
    "correlations": (lambda: transforms.CorrCholeskyTransform(), ()),
    "cumulative": (lambda a, b: transforms.CumulativeDistributionTransform(D.Normal(a, b)), (real(3), unit(3))),
    "exp": (lambda: transforms.ExpTransform(), ()),
    "independent": (lambda: transforms.IndependentTransform(transforms.TanhTransform(), 1), ()),
    "lower Cholesky": (lambda: transforms.LowerCholeskyTransform(), ()),
    "positive definite": (lambda: transforms.PositiveDefiniteTransform(), ()),
    "power": (transforms.PowerTransform, (unit(3),)),
    "reshape": (lambda: transforms.ReshapeTransform((3,), (3, 1)), ()),
    "sigmoid": (lambda: transforms.SigmoidTransform(), ()),
    "softmax": (lambda: transforms.SoftmaxTransform(), ()),
    "softplus": (lambda: transforms.SoftplusTransform(), ()),
    "stack": (lambda: transforms.StackTransform([transforms.ExpTransform(), transforms.TanhTransform(), transforms.identity_transform]), ()),
    "stick breaking": (lambda: transforms.StickBreakingTransform(), ()),
    "tanh": (lambda: transforms.TanhTransform(), ()),
}  # fmt: skip


def test_every_transform_is_here():
    made = {type(make(*params)).__name__ for make, params in TRANSFORMS.values()}
    assert made == set(transforms.__all__) - {"Transform", "identity_transform"}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("cache", [False, True])
def test_transforms(name, cache):
    make, params = TRANSFORMS[name]
    x = real(3, 3) if name in ("lower Cholesky", "positive definite") else real(3).abs()

    def there_and_back(x, *params):
        transform = make(*params)
        if cache:
            transform = transform.with_cache()
        y = transform(x)
        back = (transform.inv(y),) if transform.bijective else ()
        try:
            return y, transform.log_abs_det_jacobian(x, y), *back
        except NotImplementedError:
            return y, *back

    assert check_rule(there_and_back, x, *params)


def test_constraints_checked_inside_a_mapped_function():
    """What holds for all samples passes; what holds for none is PyTorch's own error; in between nobody can say."""

    def density(scale):
        return D.Normal(torch.zeros(2), scale).log_prob(torch.ones(2))

    assert vmap(density)(torch.ones(3, 2)).shape == (3, 2)
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        vmap(density)(-torch.ones(3, 2))
    with pytest.raises(DataDependentError, match="True for 2 of 3 samples"):
        vmap(density)(torch.tensor([[1.0, 2.0], [-1.0, 1.0], [1.0, 1.0]]))


def test_a_constraint_that_reads():
    """Whether a matrix is positive definite is asked of every sample."""

    def density(covariance):
        return D.MultivariateNormal(torch.zeros(3), covariance).log_prob(torch.ones(3))

    covariances = torch.stack([SPD, SPD * 2, SPD + 0.1])
    torch.testing.assert_close(vmap(density)(covariances), torch.stack([density(c) for c in covariances]))
    with pytest.raises(ValueError, match="PositiveDefinite"):
        vmap(density)(-covariances)
    covariances[1] *= -1
    with pytest.raises(DataDependentError, match="True for 2 of 3 samples|differs from sample to sample"):
        vmap(density)(covariances)


@pytest.mark.parametrize("registry", [D.transform_to, D.biject_to])
@pytest.mark.parametrize("constraint", ["positive", "unit_interval", "simplex", "corr_cholesky", "real"])
def test_unconstrained_parameters(registry, constraint):
    """The idiom of variational inference: a parameter is a transform of what is optimised."""
    x = real(3)
    assert check_rule(lambda x: registry(getattr(constraints, constraint))(x), x)


def test_gradients_of_each_samples_bound():
    """An evidence lower bound with reparametrised draws, its gradients per sample."""
    from vmap_autograd import grad

    data = real(4, 3)
    mean, scale = real(3), unit(3)
    noise = real(4, 3)

    def bound(params, x, noise):
        mean, scale = params
        q = D.TransformedDistribution(D.Normal(0.0, 1.0), D.AffineTransform(mean, scale))
        z = q.transforms[0](noise)
        return (D.Normal(z, 1.0).log_prob(x) - q.log_prob(z)).sum()

    got = vmap(grad(bound), in_dims=(None, 0, 0))((mean, scale), data, noise)
    for i in range(4):
        leaves = [mean.clone().requires_grad_(), scale.clone().requires_grad_()]
        expected = torch.autograd.grad(bound(leaves, data[i], noise[i]), leaves)
        torch.testing.assert_close([g[i] for g in got], list(expected))
