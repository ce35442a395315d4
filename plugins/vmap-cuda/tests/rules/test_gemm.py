"""Products of cuBLAS and CUTLASS: of integers, of 8-bit floats with scales, of groups."""

import pytest
import torch
from cuda_case import Case
from cuda_checks import checks_of

from vmap_core import FallbackWarning, vmap

aten = torch.ops.aten


def int8(t, *shape):
    return (t(*shape) * 30).to(torch.int8)


def fp8(t, *shape):
    return t(*shape).to(torch.float8_e4m3fn)


def columns(x):
    """Column after column in memory, as a sample made by rows is not."""
    return x.mT.clone(memory_format=torch.contiguous_format).mT


def scaled(x, y, a, b, *bias, out_dtype=torch.float32):
    return aten._scaled_mm.default(x, columns(y), a.abs(), b.abs(), *bias, out_dtype=out_dtype)


def scaled_rows(x, y, a, b):
    by_row = torch.nn.functional.ScalingType.RowWise
    return torch.nn.functional.scaled_mm(x, columns(y), a.abs(), by_row, b.abs(), by_row, output_dtype=torch.bfloat16)


def own_side(dims):
    x, y, a, b, *_ = dims
    return y is b is None if x is not None else x is a is None


def tensorwise(dims):
    x, y, a, b, *bias = dims
    return a is b is None and (x is None) != (y is None) and (x is None or bias in ([], [None]))


def grouped(*args, ends=None):
    offs = None if ends is None else torch.tensor(ends, dtype=torch.int32, device=args[0].device)
    return aten._grouped_mm.default(*args, offs)


INT_MM, SCALED_MM, GROUPED_MM = aten._int_mm.default, aten._scaled_mm.default, aten._grouped_mm.default
BF16 = torch.bfloat16
CASES = {
    "_int_mm": Case(
        lambda x, y: INT_MM(x, y), lambda t: [int8(t, 32, 16), int8(t, 16, 8)], (INT_MM,), lambda dims: None in dims,
        gradients=False,
    ),
    "_scaled_mm": Case(
        scaled, lambda t: [fp8(t, 16, 32), fp8(t, 32, 48), t().float(), t().float()], (SCALED_MM,), tensorwise,
        gradients=False,
    ),
    "_scaled_mm, bias": Case(
        lambda *a: scaled(*a, out_dtype=BF16),
        lambda t: [fp8(t, 16, 32), fp8(t, 32, 48), t().float(), t().float(), t(48).to(BF16)], (SCALED_MM,), tensorwise,
        gradients=False,
    ),
    "_scaled_mm, rows": Case(
        lambda *a: scaled(*a, out_dtype=BF16),
        lambda t: [fp8(t, 16, 32), fp8(t, 32, 48), t(16, 1).float(), t(1, 48).float()], (SCALED_MM,),
        lambda dims: own_side(dims) and dims[:2] != (None, None), gradients=False,
    ),
    "F.scaled_mm, rows": Case(
        scaled_rows, lambda t: [fp8(t, 16, 32), fp8(t, 32, 48), t(16, 1).float(), t(1, 48).float()],
        (aten._scaled_mm_v2.default,), lambda dims: own_side(dims) and dims[:2] != (None, None), gradients=False,
    ),
    "_grouped_mm, 3d 3d": Case(
        lambda x, y: grouped(x, y), lambda t: [t(2, 8, 16), t(2, 16, 8)], (GROUPED_MM,), dtype=BF16, cpu_dtype=torch.float,
    ),
    "_grouped_mm, 2d 3d": Case(
        lambda x, y: grouped(x, y, ends=[16, 24]), lambda t: [t(24, 16), t(2, 16, 8)], (GROUPED_MM,), dtype=BF16, cpu_dtype=torch.float,
    ),
    "_grouped_mm, 3d 2d": Case(
        lambda x, y: grouped(x, y, ends=[16, 24]), lambda t: [t(2, 8, 16), t(16, 24)], (GROUPED_MM,), dtype=BF16, cpu_dtype=torch.float,
    ),
    "_grouped_mm, 2d 2d, the last part of no group": Case(
        lambda x, y: grouped(x, y, ends=[16, 24]), lambda t: [t(8, 32), t(32, 8)], (GROUPED_MM,), gradients=False,
        dtype=BF16, cpu_dtype=torch.float,
    ),
    "_grouped_mm, 2d 2d": Case(
        lambda x, y: grouped(x, y, ends=[16, 32]), lambda t: [t(8, 32), t(32, 8)], (GROUPED_MM,), dtype=BF16, cpu_dtype=torch.float,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("check", "case"), checks_of(CASES))
def test_operators(check, case):
    check(case)


def test_a_product_of_groups_without_their_ends_is_refused():
    with pytest.warns(FallbackWarning), pytest.raises((RuntimeError, ValueError)) as mapped:
        vmap(torch._grouped_mm, in_dims=(0, None))(torch.rand(3, 8, 16), torch.rand(2, 16, 8))
    with pytest.raises((RuntimeError, ValueError)) as alone:
        torch._grouped_mm(torch.rand(8, 16), torch.rand(2, 16, 8))
    assert str(mapped.value) == str(alone.value)
