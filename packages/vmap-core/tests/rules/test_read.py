"""Conditions that are checked: answered where all samples agree, an error where they do not."""

import pytest
import torch

from vmap_core import DataDependentError, vmap


def checked(x):
    if not torch._is_all_true(x > 0):
        raise ValueError("not positive")
    return x.log()


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 0), (0, 2)])
def test_a_check_that_all_samples_pass(shape):
    x = torch.rand(shape) + 0.1
    torch.testing.assert_close(vmap(checked)(x), x.log())


def test_a_check_that_all_samples_fail():
    with pytest.raises(ValueError, match="not positive"):
        vmap(checked)(-torch.ones(3, 2))


def test_a_check_that_some_samples_fail():
    with pytest.raises(DataDependentError, match="_is_all_true gives True for 2 of 3 samples"):
        vmap(checked)(torch.tensor([1.0, -1.0, 2.0]))
    with pytest.raises(DataDependentError, match="True for 1 of 2 samples"):
        vmap(lambda x: x if torch._is_any_true(x > 0) else -x)(torch.tensor([[1.0, -1.0], [-1.0, -1.0]]))


def test_checks_at_two_levels():
    x = torch.rand(3, 2, 4) + 0.1
    torch.testing.assert_close(vmap(vmap(checked), in_dims=1, out_dims=1)(x), x.log())
    x[1, 0, 2] = -1
    with pytest.raises(DataDependentError, match="True for 5 of 6 samples"):
        vmap(vmap(checked))(x)


@pytest.mark.parametrize("same", [torch.equal, torch.allclose, lambda x, y: x.equal(y), torch.ops.aten.equal.default])
def test_comparisons_answer_where_all_samples_agree(same):
    def function(x, y):
        return x * 2 if same(x, y) else x - y

    x, y = torch.randn(3, 2), torch.randn(3, 2)
    torch.testing.assert_close(vmap(function)(x, x.clone()), x * 2)
    torch.testing.assert_close(vmap(function, in_dims=(0, 1))(x, x.T.contiguous()), x * 2)
    torch.testing.assert_close(vmap(function)(x, y), x - y)
    torch.testing.assert_close(vmap(function, in_dims=(0, None))(x, y[0]), x - y[0])
    torch.testing.assert_close(vmap(vmap(function, in_dims=(None, 0)), in_dims=(0, None))(x, y), x[:, None] - y)
    y[1] = x[1]
    with pytest.raises(DataDependentError, match="True for 1 of 3 samples"):
        vmap(function)(x, y)


def test_tensors_of_other_shapes_are_not_equal():
    assert not vmap(lambda x: torch.ones(()) * torch.equal(x, x[:1]))(torch.zeros(3, 2)).any()
    assert vmap(lambda x: torch.ones(()) * torch.allclose(x, x[:1]))(torch.zeros(3, 2)).all()
