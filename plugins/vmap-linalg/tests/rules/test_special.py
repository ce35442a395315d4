"""Least squares, exponentials, tolerances that are tensors, and checks of factorisations, against the loop."""

import pytest
import torch

from tests.calls import check_call, check_refused
from vmap_core import vmap

F64, C128 = torch.float64, torch.complex128
L = torch.linalg
aten = torch.ops.aten

torch.manual_seed(0)
A = torch.randn(4, 4, dtype=F64) + 4 * torch.eye(4, dtype=F64)
TALL, WIDE, T = torch.randn(5, 3, dtype=F64), torch.randn(2, 5, dtype=F64), torch.tensor(0.3, dtype=F64)
BATCH = torch.stack([TALL, TALL + 1])


def complex_first(op):
    """Return an operator with its first argument made complex: tolerances stay real."""
    return lambda x, *args: op(torch.complex(x, x.flip(0)), *args)


CASES = {
    "matrix_exp": (L.matrix_exp, A),
    "matrix_exp of a batch": (torch.matrix_exp, torch.stack([A, A / 3]) / 4),
    "matrix_exp of one": (L.matrix_exp, A[:1, :1]),
    "pinv, rtol": (lambda x, t: L.pinv(x, rtol=t), TALL, T),
    "pinv, atol": (lambda x, t: L.pinv(x, atol=t, rtol=t / 2), TALL, T),
    "pinv, rcond": (lambda x, t: L.pinv(x, rcond=t), TALL, T),
    "pinv, hermitian": (lambda x, t: L.pinv(x @ x.mH, rtol=t, hermitian=True), TALL, T),
    "pinv of a batch": (lambda x, t: L.pinv(x, rtol=t), BATCH, torch.stack([T, T / 9])),
    "matrix_rank, atol": (lambda x, t: L.matrix_rank(x, atol=t), TALL, T),
    "matrix_rank, tol": (lambda x, t: L.matrix_rank(x, tol=t), TALL, T),
    "matrix_rank of a batch": (lambda x, t: L.matrix_rank(x, atol=t), BATCH, T),
}
WITHOUT_DERIVATIVE = {
    "pinv, rtol",
    "pinv, atol",
    "pinv, rcond",
    "pinv of a batch",
}  # PyTorch has none by the tolerances


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, dtypes=(torch.float32, torch.bfloat16), gradients=name not in WITHOUT_DERIVATIVE)
    check_call(complex_first(op), *args, dtypes=(), nested=False, batch_sizes=(3,), gradients=False)


@pytest.mark.parametrize("driver", ["gels", "gelsy", "gelsd", "gelss"])
def test_least_squares(driver):
    for a, b in ((TALL, WIDE.mT), (TALL.mT, TALL[:3])):
        check_call(lambda x, y: L.lstsq(x, y, driver=driver), a, b, dtypes=(C128,))
    check_call(lambda x, y: L.lstsq(x, y, driver=driver).solution, TALL, WIDE[0], dtypes=(C128,))


def test_a_check_that_all_samples_pass():
    def check(codes):
        aten._linalg_check_errors(codes, "inv", is_matrix=codes.ndim == 0)
        return codes + 1

    codes = torch.zeros(3, 2, dtype=torch.int32)
    assert torch.equal(vmap(vmap(check))(codes), codes + 1)
    assert torch.equal(vmap(check, in_dims=1, out_dims=1)(codes), codes + 1)
    assert vmap(check)(codes[:0]).shape == (0, 2)
    codes[1, 1] = 2
    for mapped in (check, vmap(check)):
        with pytest.raises(RuntimeError, match="singular"):
            vmap(mapped)(codes)


REFUSED = {
    "matrix_exp of a vector": (L.matrix_exp, A[0]),
    "matrix_exp of no square": (L.matrix_exp, TALL),
    "pinv of a vector": (lambda x, t: L.pinv(x, rtol=t), A[0], T),
    "lstsq of other rows": (L.lstsq, TALL, A),
    "lstsq by no driver": (lambda x, y: L.lstsq(x, y, driver="none"), TALL, WIDE.mT),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
