"""Views against the loop: values, gradients, errors, and that what is written to a view is written to its base."""

import pytest
import torch

from tests.calls import check_call, check_refused
from vmap_core import DataDependentError, vmap
from vmap_core.testing import check_rule

X = torch.linspace(-2, 2, 24).sin().reshape(2, 3, 4)
M, V, S = X[0], X[0, 0], torch.tensor(0.7)
ONES = X[0, 0].reshape(1, 4, 1)
C = torch.complex(X, X.flip(0))

VIEWS = {
    "expand": (lambda x: x.expand(3, 4, 5), ONES.reshape(4, 1)),
    "expand, -1": (lambda x: x.expand(2, -1, -1), M),
    "expand_as": (lambda x: x.expand_as(X), V),
    "permute": (lambda x: x.permute(2, 0, 1), X),
    "permute, negative": (lambda x: torch.permute(x, (-1, 0, -2)), X),
    "transpose": (lambda x: x.transpose(0, -1), X),
    "transpose of a scalar": (lambda x: x.transpose(0, -1), S),
    "swapaxes": (lambda x: x.swapaxes(1, 2), X),
    "t": (lambda x: x.t(), M),
    "t of a vector": (lambda x: x.t(), V),
    "numpy_T": (lambda x: torch.ops.aten.numpy_T(x), M),
    "unsqueeze": (lambda x: x.unsqueeze(-2), M),
    "unsqueeze of a scalar": (lambda x: x.unsqueeze(0), S),
    "squeeze": (lambda x: x.squeeze(), ONES),
    "squeeze of nothing": (lambda x: x.squeeze(), M),
    "squeeze, dim": (lambda x: x.squeeze(-1), ONES),
    "squeeze, a longer dim": (lambda x: x.squeeze(1), ONES),
    "squeeze, dims": (lambda x: x.squeeze((0, 1)), ONES),
    "squeeze of a scalar": (lambda x: x.squeeze(0), S),
    "select": (lambda x: x.select(1, -1), X),
    "slice": (lambda x: x[:, 1:, ::2], X),
    "slice of nothing": (lambda x: x[3:1], V),
    "narrow": (lambda x: x.narrow(-1, 1, 2), X),
    "narrow from a place": (lambda x: x.narrow(0, torch.tensor(1), 2), V),
    "unbind": (lambda x: x.unbind(1), X),
    "split": (lambda x: x.split(2, -1), X),
    "split, sizes": (lambda x: x.split((1, 0, 3), -1), X),
    "split_with_sizes": (lambda x: x.split_with_sizes((1, 1)), X),
    "chunk": (lambda x: x.chunk(3, 2), X),
    "tensor_split": (lambda x: x.tensor_split(3, 2), X),
    "tensor_split, places": (lambda x: x.tensor_split((1, 3), 2), X),
    "hsplit": (lambda x: x.hsplit(3), X),
    "diagonal": (lambda x: x.diagonal(1), M),
    "diagonal, dims": (lambda x: x.diagonal(-1, -1, 0), X),
    "unfold": (lambda x: x.unfold(1, 2, 1), X),
    "unfold of a scalar": (lambda x: x.unfold(0, 1, 1), S),
    "movedim": (lambda x: x.movedim(0, -1), X),
    "movedim of a scalar": (lambda x: x.movedim(0, -1), X[0, 0, 0]),
    "movedim, dims": (lambda x: x.movedim((0, 1), (2, 0)), X),
    "moveaxis": (lambda x: x.moveaxis(-1, 0), X),
    "as_strided": (lambda x: x.as_strided((2, 2), (4, 1)), V.repeat(2)),
    "as_strided of a part": (lambda x: x[1].as_strided((2,), (1,)) + x.clone()[1].as_strided((3,), (1,), 0)[:2], V),
    "alias": (lambda x: torch.ops.aten.alias(x), M),
    "view_as_real": (lambda x: torch.view_as_real(x), C),
    "view_as_complex of a pair": (lambda x: torch.view_as_complex(x), X[0, 0, :2].clone()),
    "view_as_complex": (lambda x: torch.view_as_complex(x), X[..., :2].contiguous()),
    "real": (lambda x: x.real, C),
    "imag": (lambda x: x.imag, C),
    "conj": (lambda x: x.conj(), C),
    "view of bytes": (lambda x: x.view(torch.int32), X),
    "view of more bytes": (lambda x: x.view(torch.int16), X),
}
OVERLAPPING = {"expand", "expand, -1", "expand_as", "unfold"}  # PyTorch writes to none of these
COPIES = {"narrow from a place"}
# What the memory of a sample must allow, which in a batch whose last dim is mapped it does not, in the loop neither.
OF_MEMORY = {
    "as_strided",
    "as_strided of a part",
    "view_as_complex",
    "view_as_complex of a pair",
    "view of bytes",
    "view of more bytes",
}


def places(name):
    return {"in_dims": 0, "nested": False} if name in OF_MEMORY else {}


@pytest.mark.parametrize("name", VIEWS)
def test_against_the_loop(name):
    check_call(*VIEWS[name], **places(name))


@pytest.mark.parametrize("name", [n for n in VIEWS if n not in OVERLAPPING | COPIES])
def test_writes_go_through(name):
    view, x = VIEWS[name]

    def write(x):
        out = view(x)
        for part in out if isinstance(out, tuple | list) else [out]:
            part.add_(1)
        return torch.zeros(())

    assert check_rule(write, x, **places(name))  # it compares what is written to x


@pytest.mark.parametrize("name", ["unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"])
def test_pieces_that_autograd_takes_for_copies(name):
    check_call(getattr(torch, name), X, (1, 3) if "sizes" in name else 2, 2)


def test_elements_as_they_are():
    aten = torch.ops.aten
    for op in (
        aten._conj,
        aten._neg_view,
        aten.resolve_conj,
        aten.resolve_neg,
        aten.detach,
        aten.lift_fresh,
        aten.lift,
    ):
        check_call(op.default, C if "conj" in op.__name__ else X, dtypes=(torch.bfloat16, torch.int64))
    check_call(lambda x: torch.view_as_real(x.conj().resolve_conj()).neg(), C)


def test_places_in_tensors():
    """Where a piece begins may differ from sample to sample; where a tensor is split may not, or sizes would differ."""
    assert check_rule(lambda x, at: torch.narrow(x, 1, at, 2), M, torch.tensor(-3))
    assert check_rule(lambda x, at: torch.narrow(x, 0, at, 1), V, torch.tensor(3))
    places = torch.tensor([1, 3])
    assert check_rule(lambda x: torch.tensor_split(x, places, 1), M)
    same = vmap(lambda x, at: torch.tensor_split(x, at)[1])(V.expand(2, 4), places.expand(2, 2))
    assert torch.equal(same, V[1:3].expand(2, 2))
    with pytest.raises(DataDependentError):
        vmap(lambda at: torch.tensor_split(V, at)[0])(torch.tensor([[1, 3], [2, 3]]))


REFUSED = {
    "expand to less": (lambda x: x.expand(3), M),
    "expand to -1 in front": (lambda x: x.expand(-1, 3, 4), M),
    "expand of a longer dim": (lambda x: x.expand(3, 5), M),
    "permute of fewer dims": (lambda x: x.permute(0, 1), X),
    "permute, twice the same": (lambda x: x.permute(0, 0), M),
    "transpose, no such dim": (lambda x: x.transpose(0, 2), M),
    "t of three dims": (lambda x: x.t(), X),
    "unsqueeze, no such dim": (lambda x: x.unsqueeze(3), M),
    "squeeze, no such dim": (lambda x: x.squeeze(2), M),
    "select of a scalar": (lambda x: x.select(0, 0), S),
    "select outside": (lambda x: x.select(0, 3), M),
    "narrow from several places": (lambda x, i: x.narrow(0, i, 1), M, torch.tensor([1])),
    "narrow from no whole number": (lambda x, i: x.narrow(0, i, 1), M, S),
    "select by no whole number": (lambda x, i: torch.select(x, 0, i), M, S),
    "tensor_split at places of 32 bits": (torch.tensor_split, M, torch.tensor([1], dtype=torch.int32)),
    "narrow outside": (lambda x: x.narrow(0, 2, 2), M),
    "unbind of a scalar": (lambda x: x.unbind(), S),
    "split of a scalar": (lambda x: x.split(1), S),
    "split into other sizes": (lambda x: x.split((1, 1)), M),
    "diagonal of one dim": (lambda x: x.diagonal(0, 1, 1), M),
    "unfold of too much": (lambda x: x.unfold(0, 4, 1), M),
    "movedim of more dims": (lambda x: x.movedim((0, 1), (0,)), M),
    "imag of real numbers": (lambda x: x.imag, M),
    "view_as_complex of three": (torch.view_as_complex, X[..., :3]),
    "view_as_real of real numbers": (torch.view_as_real, M),
    "as_strided outside": (lambda x: x.as_strided((5,), (1,)), V.clone()),
    "view of bytes of a scalar": (lambda x: x.view(torch.int16), S),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])


@pytest.mark.parametrize(
    "f",
    [
        torch.positive, torch.conj, torch.conj_physical, torch.resolve_conj, torch.resolve_neg, torch.real,
        lambda x: +x, lambda x: x.flatten(1), lambda x: x[0].flatten(), lambda x: x.flatten(), lambda x: x.contiguous(),
        lambda x: x.to(x.dtype), lambda x: x.type_as(x), lambda x: x.sum_to_size(x.shape), torch.atleast_2d,
        lambda x: torch.nn.functional.dropout(x, training=False), lambda x: x.view_as(x), lambda x: x.t().t(), torch.squeeze,
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [lambda x: x, torch.exp, lambda x: torch.complex(x, x)])
def test_what_is_the_very_tensor_in_the_loop_is_here(f, make):
    def g(x):
        x = make(x)
        out = f(x)
        same.append(out is x)
        x.unsqueeze_(0)  # shows in `out` where that is `x`
        return out * 1

    for dim in (0, 1, 2):
        same = []
        x = X[..., :3].contiguous()
        expected = torch.stack([g(sample) for sample in x.unbind(dim)])
        of_loop, same = same[0], []
        torch.testing.assert_close(vmap(g, in_dims=dim)(x), expected)
        assert same == [of_loop]
