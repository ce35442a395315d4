"""Operators replayed from programs that were captured on other values, against the loop; the sweep does all of them."""

import pytest

from .sweep import entries, full_name, sweep_one

MODES = ("forward", "mixed", "nested", "inplace", "gradient", "vjp", "jvp", "vectors")
NAMES = (
    "__getitem__|_softmax_backward_data|addmm|as_strided|bmm|cat|clamp_max|cumsum|diagonal|div.no_rounding_mode|einsum|exp|expand|"
    "fft.rfft|fill|gather|index_add|index_select|linalg.cholesky|linalg.svd|logsumexp|masked_fill|matmul|max.reduction_with_dim|"
    "mean|nn.functional.conv2d|nn.functional.cross_entropy|nn.functional.dropout|nn.functional.group_norm|"
    "nn.functional.layer_norm|nn.functional.linear|nn.functional.max_pool2d|prod|scatter|select_scatter|sort|split|std|tanh|"
    "unfold|where|zero_"
)
ENTRIES = entries(f"^({NAMES.replace('.', '[.]')})$")


@pytest.mark.parametrize("op", ENTRIES, ids=full_name)
def test_operator(op):
    result = sweep_one("captured", op, MODES, limit=1)
    assert result
    assert {mode: r["detail"] for mode, r in result.items() if r["verdict"] not in ("clean", "skip")} == {}
