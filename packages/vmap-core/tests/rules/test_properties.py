"""Properties of tensors that are views, and their functions, against the loop."""

import pytest
import torch

from tests.calls import check_call, check_refused
from vmap_core import vmap
from vmap_core.testing import check_rule

X = torch.linspace(-2, 2, 24).sin().reshape(2, 3, 4)
C = torch.complex(X, X.flip(0))
SAMPLES = {"matrices": X, "matrix": X[0], "one": X[0, :1, :1], "complex": C, "scalar": C[0, 0, 0]}
CASES = [
    (name, kind)
    for name in ("T", "mT", "mH", "H", "real", "imag", "data", "adjoint")
    for kind, x in SAMPLES.items()
    if not (name == "imag" and not x.is_complex()) and not (name in ("T", "H") and x.ndim > 2)
]


def read(name):
    return torch.adjoint if name == "adjoint" else lambda x: getattr(x, name)


@pytest.mark.filterwarnings("ignore:.*is deprecated on 0-D")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_against_the_loop(name, kind):
    x = SAMPLES[kind]
    check_call(read(name), x)


@pytest.mark.parametrize("name", ["T", "mT", "mH", "H", "real", "data"])
def test_writes_go_through(name):
    assert check_rule(lambda x: getattr(x, name).add_(1).sum(), X[0])


def test_data_has_no_history():
    x = X.clone().requires_grad_()
    out = vmap(lambda s: (s * s.data).sum())(x)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], X)


@pytest.mark.filterwarnings("ignore:.*on tensors of dimension other than 2")
@pytest.mark.parametrize("name", ["mT", "mH", "H", "imag", "adjoint"])
def test_refused(name):
    check_refused(read(name), X[0, 0])
    if name == "H":
        check_refused(read(name), X)


@pytest.mark.filterwarnings("ignore:.*is deprecated on")
@pytest.mark.filterwarnings("ignore:.*on tensors of dimension other than 2")
@pytest.mark.parametrize("name", ["T", "mT", "H", "mH"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_transposes_of_low_rank(name, rank):
    batch = torch.randn((3, *(2, 4)[:rank]), dtype=torch.complex64)
    try:
        expected = torch.stack([getattr(r, name) for r in batch])
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=str(error).split(" (")[0].split(". ")[0]):
            vmap(lambda r: getattr(r, name))(batch)
    else:
        assert torch.equal(vmap(lambda r: getattr(r, name))(batch), expected)
