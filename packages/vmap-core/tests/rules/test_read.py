"""Reads of batched values: answered where all samples agree, an error where they do not."""

import operator

import pytest
import torch

from vmap_core import CaptureError, DataDependentError, capture, vmap


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
    with pytest.raises(DataDependentError, match="True for 2 of 3 samples"):
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


READS = {
    "bool": bool,
    "if": lambda x: 1 if x else 0,
    "is_nonzero": torch.is_nonzero,
    "item": lambda x: x.item(),
    "local scalar": torch.ops.aten._local_scalar_dense.default,
    "int": int,
    "float": float,
    "complex": complex,
    "format": lambda x: f"{x:d}",
    "index": operator.index,
    "range": lambda x: len(range(x)),
    "list": lambda x: [1, 2, 3][x],
    "slice": lambda x: len("abc"[:x]),
    "size": lambda x: torch.zeros(x).numel(),
    "tolist": lambda x: x.expand(2).tolist(),
}


@pytest.mark.parametrize("name", READS)
def test_a_read_goes_on_where_all_samples_agree(name):
    read = READS[name]

    def function(x, answers):
        answers.append(read(x))
        return x * 2

    for batch in (torch.full((3,), 2), torch.full((1,), 2)):
        answers = []
        assert torch.equal(vmap(function, in_dims=(0, None))(batch, answers), batch * 2)
        assert answers == [read(torch.tensor(2))]
    square, answers = torch.full((3, 4), 2), []
    assert torch.equal(
        vmap(vmap(function, in_dims=(0, None)), in_dims=(1, None), out_dims=1)(square, answers), square * 2
    )
    captured = vmap(lambda x: vmap(lambda y: function(x, answers) + y)(torch.arange(2)))(torch.full((3,), 2))
    assert torch.equal(captured, torch.tensor([[4, 5]] * 3))
    assert answers == [read(torch.tensor(2))] * 2

    for batch, levels in (
        (torch.tensor([2, 0, 2]), 1),
        (torch.tensor([[2, 2], [0, 0]]), 2),
        (torch.tensor([[2, 0], [2, 0]]), 2),
    ):
        mapped = vmap(lambda x: function(x, []))
        with pytest.raises(DataDependentError, match="differs from sample to sample"):
            (mapped if levels == 1 else vmap(mapped))(batch)
    with pytest.raises(DataDependentError, match="the batch is empty"):
        vmap(lambda x: function(x, []))(torch.full((0,), 2))


def test_truth_is_what_has_to_agree():
    assert torch.equal(
        vmap(lambda x: x if x else -x)(torch.tensor([1.0, 2.0, float("nan")])[:2]), torch.tensor([1.0, 2.0])
    )
    with pytest.raises(DataDependentError):
        vmap(lambda x: x * x.item())(torch.tensor([1.0, 2.0]))
    nan = torch.full((2,), float("nan"))
    assert vmap(lambda x: torch.tensor(x.item()).isnan())(nan).all()
    for x in (torch.tensor([0.0, -0.0]), torch.tensor([0.0, complex(0.0, -0.0)])):
        assert vmap(lambda x: torch.ones(()) if x else torch.zeros(()))(x).sum() == 0
        with pytest.raises(DataDependentError):
            vmap(lambda x: torch.tensor(x.item()))(x)
    with pytest.raises(RuntimeError, match="more than one value is ambiguous"):
        vmap(lambda x: x if x else -x)(torch.ones(3, 2))
    with pytest.raises(RuntimeError, match="converted to Scalar"):
        vmap(lambda x: x * x.item())(torch.ones(3, 2))


def test_a_read_keeps_gradients():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)

    def function(x):
        return (x * x).sum() if x.sum() > 0 else x.sum()

    vmap(function)(x).sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


def test_an_array_is_not_shared():
    with pytest.raises(DataDependentError, match="numpy"):
        vmap(lambda x: torch.from_numpy(x.numpy()))(torch.ones(3, 2))


def test_a_program_does_not_bake_a_read_in():
    with pytest.raises(CaptureError, match="read"):
        capture(vmap(lambda x: x if x > 0 else -x), torch.ones(3))
