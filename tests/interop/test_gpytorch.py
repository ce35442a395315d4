"""linear_operator and gpytorch: structured matrices, and a Gaussian process for every sample."""

import pytest
import torch

from vmap_core import vmap
from vmap_core.testing import check_rule

linear_operator = pytest.importorskip("linear_operator", reason="linear_operator is not installed")
gpytorch = pytest.importorskip("gpytorch", reason="gpytorch is not installed")

from linear_operator import operators, to_linear_operator  # noqa: E402

from vmap_autograd import grad  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

SIZES = (3, 1)  # solvers ask whether all went well, which nobody can say of an empty batch
A = torch.eye(4) * 3 + 0.3
B = torch.randn(4, generator=torch.Generator().manual_seed(0))
ROOT = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))

OPERATORS = {
    "product": (lambda a, b: to_linear_operator(a) @ b, A, B),
    "solve": (lambda a, b: to_linear_operator(a).solve(b), A, B),
    "add_diagonal": (lambda a, s, b: to_linear_operator(a).add_diagonal(s).solve(b), A, torch.tensor(0.5), B),
    "cholesky": (lambda a: to_linear_operator(a).cholesky().to_dense(), A),
    "logdet": (lambda a: to_linear_operator(a).logdet(), A),
    "inv_quad_logdet": (lambda a, b: to_linear_operator(a).inv_quad_logdet(b.unsqueeze(-1), logdet=True), A, B),
    "torch.linalg.solve": (lambda a, b: torch.linalg.solve(to_linear_operator(a), b.unsqueeze(-1)), A, B),
    "arithmetic": (lambda a, b: ((to_linear_operator(a) * 2 + to_linear_operator(b))[1:3, :2]).to_dense(), A, A + 1),
    "diagonal": (lambda d, b: operators.DiagLinearOperator(d) @ b, B.exp(), B),
    "root": (lambda r, b: operators.RootLinearOperator(r) @ b, ROOT, B),
    "low rank": (
        lambda r, d, b: (operators.LowRankRootLinearOperator(r) + operators.DiagLinearOperator(d)).solve(b),
        ROOT, B.exp(), B,
    ),
    "triangular": (lambda r, b: operators.TriangularLinearOperator(r).solve(b), torch.linalg.cholesky(A), B),
    "Kronecker": (
        lambda a, c, b: operators.KroneckerProductLinearOperator(to_linear_operator(a), to_linear_operator(c)) @ b,
        A, A[:2, :2], torch.cat([B, B]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name):
    function, *sample = OPERATORS[name]
    assert check_rule(function, *sample, batch_sizes=SIZES, nested=len(sample) < 3)


def test_toeplitz():
    column = torch.tensor([4.0, 1.0, 0.5, 0.2])
    function = lambda c, b: operators.ToeplitzLinearOperator(c) @ b  # noqa: E731
    assert check_rule(function, column, B, in_dims=(0, 0), batch_sizes=SIZES)  # it wants both of one class


def test_conjugate_gradients():
    """TorchScript inside; it stops where all samples have converged in the same step."""

    def solve(b):
        with linear_operator.settings.max_cholesky_size(1):
            return to_linear_operator(A).solve(b)

    batch = torch.stack([B, B * 2, B * 3])
    torch.testing.assert_close(vmap(solve)(batch), torch.linalg.solve(A, batch.T).T, rtol=1e-3, atol=1e-4)


X = torch.linspace(0, 1, 6).unsqueeze(-1)
TARGET = torch.sin(6 * X[:, 0])
POINTS = torch.tensor([[0.15], [0.5], [0.77]])

KERNELS = {
    "RBF": gpytorch.kernels.RBFKernel(),
    "Matern": gpytorch.kernels.MaternKernel(nu=2.5),
    "scaled and periodic": gpytorch.kernels.ScaleKernel(gpytorch.kernels.PeriodicKernel()),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name):
    assert check_rule(lambda x, z: KERNELS[name](x, z).to_dense(), X, POINTS, batch_sizes=SIZES, nested=False)


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def evidence(x, y):
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Model(x, y, likelihood).train()
    return gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)(model(x), y)


def prediction(x, y, points):
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Model(x, y, likelihood).eval()
    likelihood.eval()
    posterior = likelihood(model(points))
    return posterior.mean, posterior.variance


def test_a_process_for_every_sample():
    xs, ys = torch.stack([X, X + 0.1, X * 2]), torch.stack([TARGET, TARGET * 2, -TARGET])
    torch.testing.assert_close(
        vmap(evidence)(xs, ys), torch.stack([evidence(x, y) for x, y in zip(xs, ys, strict=True)])
    )
    got = vmap(prediction, in_dims=(0, 0, None))(xs, ys, POINTS)
    expected = [prediction(x, y, POINTS) for x, y in zip(xs, ys, strict=True)]
    for g, e in zip(got, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(g, torch.stack(e), rtol=1e-4, atol=1e-4)


def test_gradients_for_the_length_scale():
    def loss(scale, y):
        kernel = to_linear_operator(torch.exp(-0.5 * ((X - X.T) / scale) ** 2)).add_diagonal(torch.tensor(0.01))
        return -gpytorch.distributions.MultivariateNormal(torch.zeros(6), kernel).log_prob(y)

    scales, ys = torch.tensor([0.2, 0.3, 0.4]), torch.stack([TARGET, TARGET + 1, TARGET * 2])
    assert check_rule(loss, scales[0], TARGET, batch_sizes=SIZES, nested=False)
    got = vmap(grad(loss))(scales, ys)
    for i in range(3):
        scale = scales[i].clone().requires_grad_()
        torch.testing.assert_close(got[i], *torch.autograd.grad(loss(scale, ys[i]), scale), rtol=1e-3, atol=1e-3)
