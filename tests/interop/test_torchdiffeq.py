"""torchdiffeq: an ordinary differential equation solved over a batch of initial states, of parameters, or of both."""

import pytest
import torch

from vmap_core import DataDependentError, explain, sequential_vmap, vmap
from vmap_core.testing import check_rule

torchdiffeq = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed")

from torchdiffeq import odeint, odeint_adjoint  # noqa: E402

from vmap_autograd import jacrev  # noqa: E402

T = torch.linspace(0, 1, 5)
A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
Y = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3", "rk4", "explicit_adams"])
def test_fixed_steps(method):
    assert check_rule(
        lambda y, a: odeint(lambda t, y: y**3 @ a, y, T[:3], method=method), Y[0], A, nested=method == "rk4"
    )


def test_several_states():
    def solve(y, v):
        return odeint(lambda t, s: (s[1], -s[0]), (y, v), T, method="rk4")

    assert check_rule(solve, Y[0], Y[1], nested=False)


def test_the_peer_cannot():
    """What users gain; once the peer can, this goes."""
    with pytest.raises(RuntimeError, match="vmap: inplace arithmetic"):
        torch.func.vmap(lambda y: odeint(lambda t, y: y @ A, y, T, method="rk4"))(Y)


class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    def forward(self, t, y):
        return self.net(y)


@pytest.mark.filterwarnings("ignore:.*differentiates with respect to a tensor from outside the mapped function")
@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_gradients_of_a_neural_equation(solve):
    torch.manual_seed(0)
    field = Field()
    results = []
    for run in (vmap, lambda f: lambda ys: torch.stack([f(y) for y in ys])):
        y = Y.clone().requires_grad_()
        out = run(lambda y: solve(field, y, T, method="rk4"))(y)
        results.append([out, *torch.autograd.grad(out.square().sum(), [y, *field.parameters()])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_sensitivities_to_the_initial_state():
    def end(y):
        return odeint(lambda t, y: torch.sin(y) @ A, y, T, method="rk4")[-1]

    got = vmap(jacrev(end))(Y)
    torch.testing.assert_close(got, torch.stack([torch.autograd.functional.jacobian(end, y) for y in Y]))


def test_adaptive_steps_go_sample_by_sample():
    """The step size depends on the state: each sample has its own, so a loop, on purpose."""

    def solve(y):
        return odeint(lambda t, y: y**3 @ A, y, T, method="dopri5")

    with pytest.raises(DataDependentError, match="misc.py"):
        vmap(solve)(Y)
    torch.testing.assert_close(vmap(sequential_vmap(solve))(Y), torch.stack([solve(y) for y in Y]))


def test_explain():
    """A report over some hundred operations: nothing runs in a loop, each has its rule, shapes and place."""
    report = explain(vmap(lambda y: odeint(lambda t, y: y @ A, y, T, method="rk4")))(Y)
    assert not report.loops and len(report.operations) > 50
    products = [o for o in report.operations if "matmul" in o.name]
    assert len(products) == 16  # four stages in each of four steps
    assert all(o.pack == "core.matmul" and __file__ in o.location for o in products)
    assert {o.outputs[0].physical for o in products} == {(4, 2)} and {o.outputs[0].shape for o in products} == {(2,)}
    others = {o.location.rpartition("/")[2].partition(":")[0] for o in report.operations} - {"test_torchdiffeq.py"}
    assert others <= {"solvers.py", "rk_common.py", "fixed_grid.py", "misc.py", "odeint.py"}
