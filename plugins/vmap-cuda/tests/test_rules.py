"""What the table of operators (test_operators.py) does not say: errors, lists, engines, randomness, streams."""

import warnings

import pytest
import torch
from cuda_attention import CUDNN, EFFICIENT, FLASH, FLASH_BACK
from cuda_cases import LSTM, rnn, weights
from cuda_standins import STREAMS, install
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import vmap_core
from vmap_core import FallbackWarning, InplaceError, UnsupportedError, vmap

aten = torch.ops.aten
D = torch.double


@pytest.fixture(scope="module", autouse=True)
def standins():
    library = install()
    yield
    library._destroy()


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


def test_nothing_heavy_is_imported():
    import subprocess
    import sys

    code = "import sys, vmap_cuda, vmap_core; vmap_core.packs(); print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# Attention.


@pytest.mark.parametrize(
    "attend", [FLASH, lambda *qkv: EFFICIENT(*qkv, None, True), lambda *qkv: CUDNN(*qkv, None, True)]
)
@pytest.mark.filterwarnings("ignore:.*_attention_backward.default has no batching rule")
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_rows_of_a_jacobian_through_the_engine(attend, p):
    """The forward call is one of one sample, its seed too: each row of the Jacobian has the numbers of that call."""
    q, k, v = (torch.randn(1, 2, 4, 8, dtype=D, requires_grad=True) for _ in range(3))
    out = attend(q, k, v, p)[0] if attend is FLASH else attend(q, k, v)[0]
    rows = torch.randn(3, *out.shape, dtype=D)
    got = vmap(lambda row: torch.autograd.grad(out, (q, k, v), row, retain_graph=True))(rows)
    loop = [torch.autograd.grad(out, (q, k, v), row, retain_graph=True) for row in rows]
    for g, *e in zip(got, *loop, strict=True):
        torch.testing.assert_close(g, torch.stack(e))


def test_seeds_from_outside_are_of_calls_on_one_sample():
    """Only the backward operator is mapped: each sample's numbers are those of a call on that sample."""
    q, grad = torch.randn(3, 2, 2, 4, 8, dtype=D), torch.randn(3, 2, 2, 4, 8, dtype=D)
    state = torch.tensor([5, 7], dtype=torch.uint64)
    outs = []
    for s in q:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cuda_standins.draw", lambda p: (torch.tensor(5), torch.tensor(7)))
            outs.append(FLASH(s, s, s, 0.5)[:2])
    out, lse = (torch.stack(c) for c in zip(*outs, strict=True))

    def back(grad, q, out, lse):
        return FLASH_BACK(grad, q, q, q, out, lse, None, None, 4, 4, 0.5, False, state, torch.tensor(0))[0]

    with pytest.warns(FallbackWarning, match="_scaled_dot_product_flash_attention_backward"):
        got = vmap(back, randomness="different")(grad, q, out, lse)
    torch.testing.assert_close(got, torch.stack([back(*row) for row in zip(grad, q, out, lse, strict=True)]))


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q):
        out, lse, *_, state, unused, _ = FLASH(q, q, q, 0.5)
        ctx.save_for_backward(q, out, lse, state, unused)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, out, lse, state, unused = ctx.saved_tensors
        return sum(FLASH_BACK(grad, q, q, q, out, lse, None, None, 4, 4, 0.5, False, state, unused))


def test_seeds_that_a_function_saves():
    """The stand-in checks that the backward call makes the numbers of the forward call."""
    q = torch.randn(3, 2, 2, 4, 8, dtype=D, requires_grad=True)

    def gradient(q):
        q = q.detach().requires_grad_()
        return torch.autograd.grad(Attend.apply(q).sum(), q)[0]

    with Seen() as seen:
        vmap(gradient, randomness="different")(q)
        vmap(Attend.apply, randomness="different")(q).sum().backward()
    assert seen.ops.count(FLASH) == seen.ops.count(FLASH_BACK) == 2
    with Seen() as seen:
        vmap(gradient, randomness="same")(q)
    assert seen.ops.count(FLASH) == seen.ops.count(FLASH_BACK) == 3


def test_rows_of_a_bias_stay_aligned():
    """The kernel wants rows that begin at multiples of 16 bytes: PyTorch's callers pad, and merging must not undo it."""
    q, k = torch.randn(3, 2, 2, 4, 8), torch.randn(3, 2, 2, 5, 8)
    padded = torch.randn(2, 3, 2, 4, 8)[..., :5]  # the batch dim is the second: merging copies
    out = vmap(lambda q, k, b: EFFICIENT(q, k, k, b, True)[0], in_dims=(0, 0, 1))(q, k, padded)
    for i in range(3):
        torch.testing.assert_close(out[i], EFFICIENT(q[i], k[i], k[i], padded[:, i], True)[0])


def test_a_bias_that_all_share_is_a_view():
    q, bias = torch.randn(3, 1, 2, 4, 8), torch.randn(1, 2, 4, 4)

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is EFFICIENT:
                strides.append(args[3].stride())
            return func(*args, **(kwargs or {}))

    strides = []
    with Look():
        vmap(lambda q: EFFICIENT(q, q, q, bias, True)[0])(q)
    assert strides == [(0, 16, 4, 1)]


def test_the_choice_of_a_kernel_is_one_number():
    q = torch.randn(3, 2, 2, 4, 8)
    chosen = []
    vmap(lambda q: chosen.append(torch._fused_sdp_choice(q, q, q)) or q)(q)
    vmap(lambda q: chosen.append(torch._fused_sdp_choice(q, q, q)) or q)(q[:0])
    assert chosen == [torch._fused_sdp_choice(q[0], q[0], q[0])] * 2


# cuDNN.


def test_running_statistics_that_samples_share_are_not_written():
    x, w, mean, var = torch.randn(3, 4, 2, 5), torch.ones(2), torch.zeros(2), torch.ones(2)
    with pytest.raises(InplaceError, match="running statistics that all samples share"):
        vmap(lambda x: torch.cudnn_batch_norm(x, w, w, mean, var, True, 0.1, 1e-5)[0])(x)
    assert not mean.any()


def test_running_statistics_of_each_sample_are_written():
    x, w = torch.randn(3, 4, 2, 5), torch.ones(2)
    mean, var = torch.zeros(2, 3), torch.ones(3, 2)
    expected = mean.clone(), var.clone()
    norm = lambda x, m, v: torch.cudnn_batch_norm(x, w, w, m, v, True, 0.1, 1e-5)[0]  # noqa: E731
    got = vmap(norm, in_dims=(0, 1, 0))(x, mean, var)
    for i in range(3):
        torch.testing.assert_close(got[i], norm(x[i], expected[0][:, i], expected[1][i]))
    torch.testing.assert_close((mean, var), expected)


def random_rnn(randomness):
    t = lambda *shape: torch.randn(shape)  # noqa: E731
    ws, state = [*weights(t, 4), t(12, 3), t(12, 3), t(12), t(12)], torch.arange(3, dtype=torch.uint8)
    options = (4, None, t(2, 2, 3), t(2, 2, 3), LSTM, 3, 0, 2, False, 0.5, True, False, [], state)
    run = lambda x: aten._cudnn_rnn.default(x, ws, *options)[0]  # noqa: E731
    return vmap(run, randomness=randomness)(t(1, 5, 2, 4).expand(3, 5, 2, 4))


def test_dropout_between_layers():
    out = random_rnn("different")
    assert not torch.equal(out[0], out[1])
    with pytest.raises(RuntimeError, match="randomness"):
        random_rnn("error")
    with pytest.raises(UnsupportedError, match="randomness='different'"):
        random_rnn("same")


def test_gradients_through_the_engine_per_sample():
    """Shared weights of a mapped LSTM: PyTorch's graph is physical, and adds over the samples as the loop's sum does."""
    t = lambda *shape: torch.randn(shape, dtype=D)  # noqa: E731
    ws = [w.requires_grad_() for w in weights(t, 4)]
    x, hx = t(3, 5, 2, 4), t(1, 2, 3)
    got = torch.autograd.grad(vmap(lambda x: rnn(LSTM, x, hx, hx, *ws)[0])(x).sum(), ws)
    expected = torch.autograd.grad(sum(rnn(LSTM, s, hx, hx, *ws)[0].sum() for s in x), ws)
    torch.testing.assert_close(got, expected)


# Optimizers.

SHAPES = [(2, 3), (4,), ()]
ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01, "eps": 1e-8, "amsgrad": False, "maximize": False}
OPTIMIZERS = {
    "_fused_adam_": (3, True, ADAM),
    "_fused_adamw_": (4, True, {**ADAM, "amsgrad": True}),
    "_fused_sgd_": (
        2,
        False,
        {"weight_decay": 0.01, "momentum": 0.9, "lr": 0.1, "dampening": 0.1, "nesterov": False, "maximize": False,
         "is_first_step": False},
    ),
    "_fused_adagrad_": (2, True, {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.01, "eps": 1e-8, "maximize": False}),
}  # fmt: skip


def optimizer(name, *, own_steps=False, options=None, batch_dim=0):
    """Return the lists of a mapped step, and those of the loop, after it."""
    count, steps, fixed = OPTIMIZERS[name]
    torch.manual_seed(0)
    lists = [[torch.rand(3, *s).movedim(0, batch_dim if s else 0) for s in SHAPES] for _ in range(2 + count - 1)]
    if name == "_fused_adam_":
        lists.append([])
    if steps:
        lists.append(
            [
                torch.tensor([2.0, 3.0, 5.0]) if own_steps or name == "_fused_adagrad_" else torch.tensor(2.0)
                for _ in SHAPES
            ]
        )
    op = getattr(aten, name).default
    dims = [[batch_dim if s else 0 for s in SHAPES] if values else [] for values in lists]
    if steps:
        dims[-1] = [0 if x.ndim else None for x in lists[-1]]
    samples = []
    for i in range(3):
        own = lambda x, d: x if d is None else x.select(d, i).clone(memory_format=torch.contiguous_format)  # noqa: E731, B023
        row = [[own(x, d) for x, d in zip(v, ds, strict=True)] for v, ds in zip(lists, dims, strict=True)]
        op(*row, **fixed, **(options or {}))
        samples.append(row)
    expected = [
        [
            torch.stack([s[i][k] for s in samples], d) if d is not None else x
            for k, (x, d) in enumerate(zip(v, ds, strict=True))
        ]
        for i, (v, ds) in enumerate(zip(lists, dims, strict=True))
    ]

    def step(*lists):
        op(*lists, **fixed, **(options or {}))
        return torch.zeros(())

    with Seen() as seen:
        vmap(step, in_dims=tuple(dims))(*lists)
    assert seen.ops.count(op) == 1
    return lists, expected


@pytest.mark.parametrize("own_steps", [False, True])
@pytest.mark.parametrize("batch_dim", [0, 1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_of_all_samples(name, own_steps, batch_dim):
    got, expected = optimizer(name, own_steps=own_steps, batch_dim=batch_dim)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("sizes", [(3, 2), (1, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("outer", [0, 1, 2])
def test_one_step_at_two_levels(sizes, outer):
    lists = [torch.rand(*sizes, 4).movedim(0, outer) for _ in range(3)]
    fixed = OPTIMIZERS["_fused_sgd_"][2]

    def step(p, g, m):
        aten._fused_sgd_.default([p], [g], [m], **fixed)
        return p * 1

    expected = [x.movedim(outer, 0).reshape(-1, 4).clone() for x in lists]
    for row in zip(*expected, strict=True):
        step(*row)
    vmap(vmap(step), in_dims=outer)(*lists)
    torch.testing.assert_close([x.movedim(outer, 0).reshape(-1, 4) for x in lists], expected)


def test_a_learning_rate_of_each_sample():
    p, g, m = torch.rand(3, 4), torch.rand(3, 4), torch.rand(3, 4)
    lr, expected = torch.tensor([0.1, 0.2, 0.3]), (p.clone(), m.clone())
    fixed = {k: v for k, v in OPTIMIZERS["_fused_sgd_"][2].items() if k != "lr"}

    def step(p, g, m, lr):
        aten._fused_sgd_.tensor_lr([p], [g], [m], lr=lr, **fixed)
        return lr

    with pytest.warns(FallbackWarning, match="_fused_sgd_"):
        vmap(step)(p, g, m, lr)
    for i in range(3):
        step(expected[0][i], g[i], expected[1][i], lr[i])
    torch.testing.assert_close((p, m), expected)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_whole_optimizers(optimizer, options):
    def train(p, g):
        q = p.clone().requires_grad_()
        steps = optimizer([q], lr=0.1, **options)
        for _ in range(2):
            q.grad = g.clone()
            steps.step()
        return q.detach()

    p, g = torch.rand(3, 4), torch.rand(3, 4)
    torch.testing.assert_close(vmap(train)(p, g), torch.stack([train(*row) for row in zip(p, g, strict=True)]))


def test_parameters_that_samples_share_are_not_written():
    p = torch.rand(4)
    with pytest.raises(InplaceError, match="outside"):
        vmap(lambda g: aten._fused_sgd_.default([p], [g], [g * 0], **OPTIMIZERS["_fused_sgd_"][2]))(torch.rand(3, 4))


# Lists, streams, memory.


def test_a_product_of_groups_without_their_ends_is_refused():
    with pytest.warns(FallbackWarning), pytest.raises((RuntimeError, ValueError)) as mapped:
        vmap(torch._grouped_mm, in_dims=(0, None))(torch.rand(3, 8, 16), torch.rand(2, 16, 8))
    with pytest.raises((RuntimeError, ValueError)) as alone:
        torch._grouped_mm(torch.rand(8, 16), torch.rand(2, 16, 8))
    assert str(mapped.value) == str(alone.value)


def test_foreach():
    """By the core's rules, on every device: one call on the lists of physical tensors."""
    with FakeTensorMode(), Seen() as seen:
        xs = [torch.empty(2, 3, 5, device="cuda"), torch.empty(4, 3, device="cuda")]
        out = vmap(lambda *xs: torch._foreach_add(torch._foreach_mul(xs, 2.0), xs, alpha=2), in_dims=1)(*xs)
    assert seen.ops.count(aten._foreach_add.List) == seen.ops.count(aten._foreach_mul.Scalar) == 1
    assert [(o.shape, o.device.type) for o in out] == [((3, 2, 5), "cuda"), ((3, 4), "cuda")]


def test_a_stream_is_recorded_once():
    STREAMS.clear()
    x = torch.randn(4, 3)
    stream = torch.Stream(stream_id=0, device_index=0, device_type=1)
    vmap(lambda x: x.record_stream(stream) or x, in_dims=1)(x)
    vmap(lambda y: x.record_stream(stream) or y)(x)
    assert STREAMS == [((4, 3), x.data_ptr())] * 2


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU there is pinned memory: test_copies_and_streams_on_a_gpu"
)
def test_pinned_memory_without_a_gpu():
    pinned = []
    x = torch.randn(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        vmap(lambda x: pinned.append(x.is_pinned()) or x)(x)
        vmap(lambda x: pinned.append(x.is_pinned()) or x)(x[:0])
        with pytest.raises(RuntimeError) as mapped:
            vmap(lambda x: x.pin_memory())(x)
        with pytest.raises(RuntimeError) as alone:
            x.pin_memory()
    assert pinned == [False, False] and str(mapped.value) == str(alone.value)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_and_streams_on_a_gpu():
    x = torch.randn(3, 4).pin_memory()
    stream = torch.cuda.Stream()

    def move(x):
        y = x.pin_memory().to("cuda", non_blocking=True)
        assert x.is_pinned() and y.is_cuda
        y.record_stream(stream)
        return y.cpu()

    assert torch.equal(vmap(move)(x), x)


def test_pack_is_in_the_table():
    found = next(p for p in vmap_core.packs() if p.name == "cuda")
    assert found.error is None and found.rules > 45
