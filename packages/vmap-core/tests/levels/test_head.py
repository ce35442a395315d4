"""What C++ finds in a BatchedTensor; tests/extension has a pybind11 extension that looks."""

import collections.abc
import gc
import os
import subprocess
import sys

import pytest
import torch

from vmap_core import EscapedTensorError, UnsupportedError, vmap
from vmap_core.levels import head
from vmap_core.levels.tensor import BatchedTensor
from vmap_core.torch_compat.mode_stack import DisableTorchFunction

X = torch.arange(12.0).reshape(3, 4)


def in_cpp(function, *args):
    """Call a function without the hand-over to levels, as C++ that does not know of it would."""
    with DisableTorchFunction():
        return function(*args)


@pytest.mark.parametrize(
    "function",
    [torch.sin, torch.clone, lambda x: int(torch.numel(x)), lambda x: torch.add(X, x), lambda x: torch.cat([x])],
)
def test_a_batched_tensor_refuses(function):
    with pytest.raises(
        UnsupportedError, match=r"(?s)C\+\+ asked aten::.*test_head.py.*vmap of '<lambda>'.*custom_op.*sequential_vmap"
    ):
        vmap(lambda x: in_cpp(function, x))(X)


def test_an_unbatched_one_is_its_value():
    seen = []

    def f(x):
        made = torch.arange(4.0)
        seen.extend([in_cpp(torch.sin, made), in_cpp(torch.add, X, made), in_cpp(made.view, 2, 2)])
        return x + made

    vmap(f)(X)
    torch.testing.assert_close(seen, [torch.arange(4.0).sin(), X + torch.arange(4.0), torch.arange(4.0).view(2, 2)])
    assert all(type(s) in (torch.Tensor, BatchedTensor) for s in seen)


@pytest.mark.parametrize("write", [
    lambda made, x: made.copy_(x),
    lambda made, x: made.view(2, 2).copy_(x.view(2, 2)),
    lambda made, x: setattr(made, "data", x),
    lambda made, x: torch.add(x, 1, out=made),
    lambda made, x: torch.cat([x, x], out=made),
    lambda made, x: made.requires_grad_(),
])  # fmt: skip
def test_what_becomes_batched_refuses_from_then_on(write):
    def f(x):
        made = torch.zeros(4)
        view = made[:2]
        assert in_cpp(torch.numel, made) == 4
        write(made, x)
        del view
        gc.collect()
        in_cpp(torch.sin, made)

    with pytest.raises(UnsupportedError, match="aten::sin"):
        vmap(f)(X)


def test_a_nested_value_is_looked_through():
    def f(x):
        return vmap(lambda y: y + in_cpp(torch.numel, torch.ones(5)))(x)

    torch.testing.assert_close(vmap(f)(X), X + 5)
    with pytest.raises(UnsupportedError):
        vmap(lambda x: vmap(lambda y: in_cpp(torch.sin, x) + y)(X[0]))(X)


def test_after_its_vmap_a_batched_one_has_escaped():
    kept = []
    vmap(lambda x: (kept.append(x), x)[1])(X)
    for use in (lambda x: X[x], lambda x: torch.Tensor(x), lambda x: in_cpp(torch.sin, x), lambda x: x + 1):
        with pytest.raises(EscapedTensorError):
            use(kept[0])


def test_python_takes_it_for_a_tensor_and_for_nothing_else():
    kinds = []

    def f(x):
        for t in (x, torch.ones(2)):
            kinds.append(
                (
                    isinstance(t, torch.Tensor),
                    isinstance(t, collections.abc.Iterator),
                    isinstance(t, torch.nn.Parameter),
                )
            )
            with pytest.raises(TypeError):
                next(t)
        return x

    vmap(f)(X)
    assert kinds == [(True, False, False)] * 2


@pytest.mark.parametrize(("choice", "used"), [("", "True"), ("fast", "True"), ("safe", "False")])
def test_the_choice(choice, used):
    code = (
        "import torch; from vmap_core import vmap; from vmap_core.levels import head, tensor;"
        "print(not issubclass(tensor.BatchedTensor, torch.Tensor), head.SAFE is None,"
        "vmap(lambda x: (x * torch.ones(2)).sum() + x.new_zeros(()))(torch.ones(3, 2)).tolist())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"VMAP_HEAD": choice}, capture_output=True, text=True
    )
    assert ran.stdout.split(maxsplit=2) == [used, used, "[2.0, 2.0, 2.0]\n"], ran.stderr


def test_a_wrong_choice_is_said():
    ran = subprocess.run(
        [sys.executable, "-c", "import vmap_core"],
        env=os.environ | {"VMAP_HEAD": "quick"},
        capture_output=True,
        text=True,
    )
    assert "VMAP_HEAD=quick: the choices are 'fast' and 'safe'" in ran.stderr


def test_another_layout_is_noticed(monkeypatch):
    from vmap_core.torch_compat import head as low

    assert low.why_not(head._sentinel) is None or os.environ.get("VMAP_HEAD") == "safe"
    monkeypatch.delenv("VMAP_HEAD", raising=False)
    monkeypatch.setattr(low, "HEAD", low.HEAD + 8)
    assert "another place" in low.why_not(head._sentinel)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: type(x)(x),
        lambda x: x + type(x)(torch.ones(4)),
        lambda x: x + type(x)([1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_the_class_makes_tensors_as_torch_tensor_does(f):
    torch.testing.assert_close(vmap(f)(X), torch.stack([f(x) for x in X]))
    torch.testing.assert_close(vmap(vmap(f))(X[None]), torch.stack([f(x) for x in X])[None])


def test_it_makes_nothing_else():
    made = []
    vmap(lambda x: (made.append(type(x)), x)[1])(X)
    for wrong in ("a", None, 2**63, object()):
        with pytest.raises((TypeError, RuntimeError, OverflowError, ValueError)):
            made[0](wrong)
