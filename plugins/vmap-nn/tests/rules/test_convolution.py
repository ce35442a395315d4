"""Convolutions against the loop: input, weight or bias mapped, transposed, in groups, without N, of one size."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state

from tests.calls import check_call, check_refused
from vmap_core import vmap


def r(*shape):
    return torch.linspace(-3, 3, torch.Size(shape).numel()).sin().reshape(shape)


CASES = {
    "conv1d": (F.conv1d, r(2, 4, 7), r(6, 4, 3), r(6)),
    "conv1d, groups": (lambda x, w: F.conv1d(x, w, None, 2, 1, 2, 2), r(2, 4, 9), r(6, 2, 3)),
    "conv1d, same": (lambda x, w: F.conv1d(x, w, padding="same"), r(2, 4, 7), r(2, 4, 3)),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, (2, 1), (0, 1)), r(2, 3, 5, 6), r(4, 3, 3, 2), r(4)),
    "conv2d, no N": (F.conv2d, r(3, 5, 4), r(4, 3, 2, 2), r(4)),
    "conv2d, depthwise": (lambda x, w: F.conv2d(x, w, groups=3), r(1, 3, 4, 4), r(3, 1, 2, 2)),
    "conv2d, N and window of one": (F.conv2d, r(1, 1, 3, 3), r(1, 1, 1, 1), r(1)),
    "conv3d": (F.conv3d, r(1, 2, 3, 4, 3), r(2, 2, 2, 2, 2), r(2)),
    "conv_transpose1d": (lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1), r(2, 4, 5), r(4, 3, 3), r(3)),
    "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w, None, 2, groups=2), r(2, 4, 3, 3), r(4, 3, 2, 2)),
    "conv_transpose2d, no N": (F.conv_transpose2d, r(4, 3, 3), r(4, 3, 2, 2), r(3)),
    "conv_transpose3d": (F.conv_transpose3d, r(1, 2, 2, 2, 2), r(2, 1, 2, 2, 2), r(1)),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_loop(name):
    op, *args = CASES[name]
    check_call(op, *args, dtypes=(torch.float64, torch.bfloat16))


COMPLEX = {name: CASES[name] for name in ("conv1d", "conv2d", "conv2d, no N", "conv_transpose2d, no N", "conv3d")}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_against_the_loop(name):
    op, *args = COMPLEX[name]
    check_call(op, *(torch.complex(a, a.flip(-1)) for a in args), dtypes=())


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # PyTorch before 2.13
@pytest.mark.parametrize("transposed", [False, True])
def test_large_members_have_a_convolution_each(transposed, monkeypatch):
    monkeypatch.setattr("vmap_nn.convolution.LARGE", 100)
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    members = [kind(4, 6, 3, stride=2, groups=2) for _ in range(3)]
    state = {k: v.detach().requires_grad_() for k, v in stack_module_state(members)[0].items()}
    x = torch.randn(3, 2, 4, 9, 9)
    with torch.profiler.profile() as profile:
        got = vmap(lambda state, x: functional_call(members[0], state, (x,)))(state, x)
    assert sum(e.name == "aten::convolution" for e in profile.events()) == 3
    expected = torch.stack([m(row) for m, row in zip(members, x, strict=True)])
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(expected)
    grads = torch.autograd.grad((got * weights).sum(), list(state.values()))
    (expected * weights).sum().backward()
    for name, grad in zip(state, grads, strict=True):
        torch.testing.assert_close(
            grad, torch.stack([m.get_parameter(name).grad for m in members]), rtol=1e-4, atol=1e-4
        )


REFUSED = {
    "an input of other dims": (F.conv2d, r(3, 4), r(4, 3, 2, 2)),
    "other channels": (F.conv1d, r(2, 3, 5), r(2, 4, 3)),
    "a window too large": (F.conv1d, r(2, 3, 2), r(2, 3, 3)),
    "other dtypes": (F.conv1d, r(2, 3, 5), r(2, 3, 3).double()),
    "a bias of another dtype": (F.conv1d, r(2, 3, 5), r(2, 3, 3), r(2).double()),
    "a bias of another dtype, numbers for lists": (
        lambda *a: F.conv2d(*a, 1, 1),
        r(2, 3, 5, 5),
        r(2, 3, 3, 3),
        r(2).double(),
    ),
    "a bias of other sizes": (F.conv1d, r(2, 3, 5), r(1, 3, 3), r(2)),
    "a bias of other sizes, a padding by name": (
        lambda *a: F.conv1d(*a, padding="same"),
        r(2, 3, 5),
        r(2, 3, 3),
        r(1, 2),
    ),
    "a bias of other sizes, transposed": (F.conv_transpose2d, r(2, 3, 5, 5), r(3, 1, 3, 3), r(2)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(*REFUSED[name])
