"""Elementwise operators against the loop: those of the file, and what every one of them has to do."""

import pytest
import torch

from tests.calls import check_call, check_refused

X, V, S = torch.linspace(-2, 2, 12).sin().reshape(3, 4), torch.linspace(0.5, 2, 4), torch.tensor(0.7)
aten = torch.ops.aten

CASES = {
    "complex": (torch.complex, X, X + 1),
    "complex, broadcast": (torch.complex, X, V),
    "polar": (torch.polar, X.abs(), V),
    "rsub": (lambda x, y: torch.rsub(x, y, alpha=2), X, V),
    "rsub of a number": (torch.rsub, X, 3),
    "true_divide": (torch.true_divide, X, V),
    "true_divide by a number": (torch.true_divide, X, 3),
    "where": (torch.where, X > 0, X, V),
    "where, broadcast": (torch.where, V > 1, X, S),
    "where, number first": (lambda c, y: torch.where(c, 2.0, y), X > 0, X),
    "where, number last": (lambda c, x: torch.where(c, x, 2.0), X > 0, X),
    "where of numbers": (lambda c: torch.where(c, 1.0, -1.0), X > 0),
    "float_power by a scalar": (torch.float_power, X.abs() + 0.5, S),
    "float_power by a vector": (torch.float_power, X.abs() + 0.5, V),
    # PyTorch's pointwise tag alone brings these.
    "add of a number": (lambda x: torch.add(x, 2, alpha=3), X),
    "sub of a number": (lambda x: x.sub(2, alpha=3), X),
    "rsub from a number": (lambda x: torch.rsub(x, 2, alpha=3), X),
    "add of a number in place": (lambda x: x.clone().add_(2, alpha=3), X),
    "add": (lambda x, y: torch.add(x, y, alpha=2), X, V),
    "add of a number times alpha": (lambda x: torch.add(x, 2, alpha=3), X),
    "floor_divide": (torch.floor_divide, X, V),
    "floor_divide by a number": (lambda x: x // 0.5, X),
    "sub of a float times alpha": (lambda x: torch.sub(x, 1.5, alpha=2), X),
    "add of a scalar": (torch.add, X, S),
    "add to more dims": (torch.add, V, X),
    "mul by a number": (torch.mul, X, 2),
    "size one": (torch.mul, X[:1, :1], X),
    "pow": (torch.pow, X.abs() + 0.5, V),
    "number to a power": (torch.pow, 2, X),
    "clamp": (torch.clamp, X, -0.5, 0.5),
    "clamp by tensors": (torch.clamp, X, X.flip(0) - 1, X.flip(1) + 1),
    "clamp_max": (torch.clamp_max, X, V - 0.5),
    "lerp": (torch.lerp, X, V, S),
    "addcmul": (torch.addcmul, X, V, S),
    "atan2": (torch.atan2, X, V),
    "gelu": (torch.nn.functional.gelu, X),
    "lgamma": (torch.lgamma, X.abs() + 0.5),
    "isnan": (torch.isnan, X),
    "logical_and": (torch.logical_and, X, V),
    "bitwise_xor": (torch.bitwise_xor, torch.arange(4), torch.arange(4).flip(0)),
    "float_power": (torch.float_power, X.abs() + 0.5, 2.5),
    "frexp": (torch.frexp, X),
    "sum of a scalar and a number": (torch.add, S, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args)


@pytest.mark.parametrize(
    "other", [S.double(), torch.tensor(2), torch.tensor(True), V.bfloat16(), V.to(torch.complex64)]
)
@pytest.mark.parametrize("op", [torch.add, torch.where, torch.true_divide], ids=lambda op: op.__name__)
def test_dtypes_promote_as_those_of_a_sample(op, other):
    """A scalar tensor promotes less than one with dims, and a mapped one is still a scalar."""
    for x in (X, X.bfloat16(), torch.arange(4)):
        args = (x > 0, x, other) if op is torch.where else (x, other)
        check_call(op, *args, dtypes=(), gradients=False)


REFUSED = {
    "other sizes": (torch.add, X, X[:, :3]),
    "complex of dtypes": (torch.complex, X, X.double()),
    "a condition that is none": (torch.where, X, X, X),
    "bits of floats": (torch.bitwise_xor, X, X),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])


def test_numbers_of_another_kind_than_the_tensors():
    n = torch.arange(4)
    check_call(lambda x: torch.sub(x, -2.5, alpha=3), n, dtypes=())
    check_call(lambda x: x.add(2.5, alpha=2), n, dtypes=())
    check_call(lambda x: torch.add(x, 1.5j, alpha=2), X, dtypes=())
    check_call(lambda x: aten.add.Scalar(x, 2.5, 3), n, dtypes=())
    check_refused(lambda x: x.add(2, alpha=1.5), n)


def test_float_power_rounds_no_operand_to_the_others_dtype():
    check_call(torch.float_power, (X.abs() + 0.5).bfloat16(), torch.tensor(1.7), dtypes=(), gradients=False)
    check_call(torch.float_power, torch.tensor(1.7), (X.abs() + 0.5).bfloat16(), dtypes=(), gradients=False)
