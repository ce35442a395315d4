"""Rules refuse what their operators refuse: the operator is asked once for each signature, on the side."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vmap_core import vmap
from vmap_core.extend import asker

LEVEL = SimpleNamespace(batch_size=2)
X = torch.ones(2, 2, 2)


class Asked:
    """An operator that counts its calls."""

    def __init__(self, op):
        self.op, self.calls = op, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.op(*args, **kwargs)


def test_asks_once_for_each_signature_of_a_sample():
    op = Asked(torch.add)
    ask = asker(op)
    for _ in range(3):
        assert ask(LEVEL, (0, None), (X, X[0].double()), {"alpha": 2}) is torch.float64
    assert op.calls == 1
    for other in (X[:, :1], X.double(), X.int()):
        ask(LEVEL, (0, None), (other, X[0]), {"alpha": 2})
    ask(LEVEL, (1, None), (X, X[0]), {"alpha": 2})
    ask(LEVEL, (0, None), (X, X[0]), {"alpha": 2.0})  # another type, though the numbers are equal
    assert op.calls == 6


def test_what_is_refused_is_asked_again():
    op = Asked(torch.add)
    ask = asker(op)
    for calls in (2, 4):  # of zeros, then of the first sample
        with pytest.raises(RuntimeError, match="size of tensor a"):
            ask(LEVEL, (0, 0), (X, torch.ones(3, 5)), {})
        assert op.calls == calls


def test_zeros_that_are_refused_for_what_they_are_are_no_refusal():
    op = Asked(torch.linalg.inv)
    ask = asker(op)
    for _ in range(2):
        assert ask(LEVEL, (0,), (torch.eye(2).expand(3, 2, 2),), {}) is torch.float32
    assert op.calls == 2
    with pytest.raises(torch.linalg.LinAlgError):
        asker(op)(LEVEL, (0,), (torch.zeros(3, 2, 2),), {})


def test_an_empty_batch_has_no_sample_to_be_refused():
    ask, empty = asker(torch.linalg.inv), torch.ones(0, 2, 2)
    assert ask(SimpleNamespace(batch_size=0), (0,), (empty,), {}) is None
    assert torch.linalg.inv(vmap(torch.linalg.inv)(empty)).shape == (0, 2, 2)


def test_the_arguments_are_not_written_to():
    x = torch.ones(3, 2)
    ask = asker(lambda x: x.zero_() if bool(x.any()) else [][0])  # refuses zeros
    ask(LEVEL, (0,), (x,), {})
    assert x.all()


def test_one_number_for_a_list():
    ask = asker(torch.ops.aten.conv2d.default)
    x, w = torch.ones(3, 1, 2, 5, 5), torch.ones(4, 2, 3, 3)
    assert ask(LEVEL, (0, None, None), (x, w, None, 1, 1), {}) is torch.float32
    with pytest.raises(RuntimeError, match="bias"):
        ask(LEVEL, (0, None, 0), (x, w, torch.ones(3, 5), 1, 1), {})


def test_lists_of_tensors_are_told_apart_and_not_kept():
    op = Asked(lambda tensors: torch.cat(tensors))
    ask = asker(op)
    x = torch.ones(3, 2)
    gone = weakref.ref(x)
    ask(LEVEL, ([0, None],), ([x, x[0]],), {})
    ask(LEVEL, ([0, None],), ([x + 1, x[0]],), {})
    assert op.calls == 1
    ask(LEVEL, ([0, 0],), ([x, x],), {})
    assert op.calls == 2
    del x
    gc.collect()
    assert gone() is None


def test_what_has_no_hash_is_not_asked():
    class Unhashable:
        __hash__ = None

    op = Asked(lambda x, a: x)
    assert asker(op)(LEVEL, (0, None), (X, Unhashable()), {}) is None
    assert not op.calls


def test_who_watches_operations_does_not_see_it():
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    def run():
        seen.clear()
        with Seen():
            vmap(torch.addmm)(x, x, x)
        return list(seen)

    seen, x = [], torch.randn(3, 7, 7)  # a size of its own, so that the first call asks
    assert run() == run()


def test_nothing_is_allocated_for_tensors_without_memory():
    with FakeTensorMode():
        x = torch.empty(2, 1 << 22, 1 << 22)
        assert vmap(torch.addmm, in_dims=(0, 0, None))(x, x, x[0]).shape == x.shape


@pytest.mark.parametrize("nested", [False, True])
def test_in_the_operators_words(nested):
    x, v = torch.ones(2, 3, 4), torch.ones(2, 3, 4, 4)
    op = vmap(torch.addmv) if nested else torch.addmv
    with pytest.raises(RuntimeError, match="vector \\+ matrix @ vector expected, got"):
        vmap(op)(*((x, v, v) if nested else (x[0], v[0], v[0])))


def test_the_dtype_of_the_operator():
    x = torch.rand(3, 5)
    assert vmap(F.huber_loss)(x.bfloat16(), x).dtype == F.huber_loss(x[0].bfloat16(), x[0]).dtype
    assert vmap(F.huber_loss)(x.bfloat16()[:0], x[:0]).dtype == F.huber_loss(x[0].bfloat16(), x[0]).dtype


def test_under_autocast_and_with_gradients():
    x = torch.rand(3, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = vmap(torch.addmm)(x, x, x)
        assert out.dtype == torch.addmm(x[0], x[0], x[0]).dtype
    grad = torch.autograd.grad(vmap(torch.addmm)(x, x, x).sum(), x)[0]
    expected = torch.autograd.grad(torch.baddbmm(x, x, x).sum(), x)[0]
    torch.testing.assert_close(grad, expected)
